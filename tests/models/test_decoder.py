import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from architectures import tiny
from basis_sharing.errors import ModelError
from basis_sharing.models.decoder import bias, describe, module, weight
from basis_sharing.models.family import ROLES
from pico import PICO, build


@pytest.mark.parametrize("name", PICO)
def test_weight_and_bias_reproduce_every_projection(name):
    torch.set_num_threads(1)
    model = PICO[name]()
    decoder = describe(model)
    assert len(decoder.blocks) == model.config.num_hidden_layers
    for p in decoder.projections:
        x = torch.randn(3, p.d_in)
        W, b = weight(model, p), bias(model, p)
        assert W.shape == (p.d_in, p.d_out)
        assert (b is not None) == p.bias
        assert W.data_ptr() == module(model, p.name).weight.data_ptr()
        y = x @ W if b is None else x @ W + b
        torch.testing.assert_close(y, module(model, p.name)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PICO)
def test_projections_are_ordered_and_unique(name):
    projections = describe(PICO[name]()).projections
    order = [(p.block, ROLES.index(p.role)) for p in projections]
    assert order == sorted(set(order))
    assert len({p.name for p in projections}) == len(projections)


@pytest.mark.parametrize("name", PICO)
def test_a_model_on_meta_is_described_the_same(name):
    real = PICO[name]()
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(real.config)
    assert describe(meta) == describe(real)


def test_grouped_query_attention_has_narrow_keys():
    decoder = describe(PICO["llama"]())
    widths = {p.role: p.d_out for p in decoder.projections}
    assert (widths["q"], widths["k"], widths["v"]) == (64, 32, 32)


def test_heads_wider_than_the_model():
    shapes = {p.role: (p.d_in, p.d_out) for p in describe(PICO["gemma3"]()).projections}
    assert shapes["q"] == (48, 96)
    assert shapes["o"] == (96, 48)


def test_conv1d_is_stored_transposed():
    assert {p.transposed for p in describe(PICO["gpt2"]()).projections} == {True}
    assert {p.transposed for p in describe(PICO["llama"]()).projections} == {False}


def test_biases_are_reported():
    assert all(p.bias for p in describe(PICO["llama-untied-bias"]()).projections)
    assert {p.role for p in describe(PICO["qwen2"]()).projections if p.bias} == {"q", "k", "v"}


def test_experts_are_listed_with_their_parameters():
    decoder = describe(PICO["mixtral"]())
    (left,) = decoder.left_dense
    assert "routers" in left.reason
    assert [experts.name for experts in decoder.experts] == [f"model.layers.{n}.mlp.experts" for n in range(4)]
    experts = decoder.experts[1]
    assert (experts.block, experts.role, experts.count, experts.active, experts.neurons) == (1, "experts", 4, 2, 96)
    assert experts.d_in * experts.d_out == 4 * 3 * 96 * 64
    assert experts.sizes == {"gate_up_proj": (64, 192), "down_proj": (96, 64)}
    assert decoder.without_experts.experts == ()
    assert [part.name for part in decoder.parts].index(experts.name) > 0


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("jetmoe", "experts with a weight cannot be made narrower"), ("longcat_flash", "others pass their input on")],
)
def test_experts_that_cannot_be_compressed_are_named(model_type: str, reason: str):
    decoder = describe(tiny(model_type))
    assert decoder.experts == ()
    assert any(reason in left.reason for left in decoder.left_dense)


def test_shared_experts_and_latent_attention_have_roles_of_their_own():
    roles = {p.role for p in describe(tiny("deepseek_v3")).projections}
    assert roles >= {"q_a", "kv_a", "q_b", "kv_b", "gate", "shared_gate", "shared_up", "shared_down"}


def test_quantized_linears_stay_as_they_are():
    class Packed(nn.Linear):
        def __init__(self):
            super().__init__(64, 96, bias=False)
            self.weight = nn.Parameter(torch.zeros(64 * 96 // 2, 1, dtype=torch.uint8), requires_grad=False)

    model = PICO["llama"]()
    for block in model.model.layers:
        block.mlp.up_proj = Packed()
    decoder = describe(model)
    assert "up" not in {p.role for p in decoder.projections}
    (left,) = decoder.left_dense
    assert (left.name, "quantized" in left.reason) == ("model.layers.*.mlp.up_proj", True)


def test_a_weight_the_model_already_shares_stays_dense():
    model = PICO["llama"]()
    layers = model.model.layers
    layers[3].self_attn.q_proj.weight = layers[1].self_attn.q_proj.weight
    decoder = describe(model)
    assert "q" not in {p.role for p in decoder.projections}
    (left,) = decoder.left_dense
    assert "several places" in left.reason
    assert left.parameters == 4 * 64 * 64


def test_a_model_without_its_head_is_refused():
    model = AutoModel.from_config(PICO["llama"]().config)
    with pytest.raises(ModelError, match="language modelling head"):
        describe(model)


def test_nothing_to_compress_is_refused():
    model = build("ctrl", vocab_size=64, n_embd=16, dff=32, n_layer=2, n_head=2)
    for block in model.transformer.h:
        block.multi_head_attention = nn.Identity()
    with pytest.raises(ModelError, match=r"no projection that can be compressed|cannot be probed"):
        describe(model)
