import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from basis_sharing.errors import ModelError
from basis_sharing.models.decoder import describe
from basis_sharing.models.detect import detect_family, find_blocks
from basis_sharing.models.probe import read_inputs
from basis_sharing.models.roles import role_of
from pico import PICO, build

SMALL = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
GLU = {"intermediate_size": 32, "num_key_value_heads": 1, **SMALL}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
QKV = {"q", "k", "v"}

# model type, settings, blocks, partition of the roles by input
UNNAMED = [
    ("stablelm", GLU, "model.layers", [QKV, {"o"}, {"gate", "up"}, {"down"}]),
    ("granite", GLU, "model.layers", [QKV, {"o"}, {"gate", "up"}, {"down"}]),
    ("olmo2", GLU, "model.layers", [QKV, {"o"}, {"gate", "up"}, {"down"}]),
    ("starcoder2", GLU, "model.layers", [QKV, {"o"}, {"up"}, {"down"}]),
    ("gpt_neox", {"intermediate_size": 32, **SMALL}, "gpt_neox.layers", [{"qkv"}, {"o"}, {"up"}, {"down"}]),
    ("bloom", {"n_layer": 2, "n_head": 2, "hidden_size": 16}, "transformer.h", [{"qkv"}, {"o"}, {"up"}, {"down"}]),
    (
        "lfm2",
        {"layer_types": ["conv", "full_attention"], **GLU},
        "model.layers",
        [QKV, {"o"}, {"gate", "up"}, {"down"}],
    ),
    # attention and MLP side by side behind one norm
    ("phi", {"intermediate_size": 32, **SMALL}, "model.layers", [QKV | {"up"}, {"o"}, {"down"}]),
    ("falcon", {"num_kv_heads": 1, **SMALL}, "transformer.h", [{"qkv", "up"}, {"o"}, {"down"}]),
    ("cohere", GLU, "model.layers", [QKV | {"gate", "up"}, {"o"}, {"down"}]),
    (
        "gptj",
        {"vocab_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 16, "rotary_dim": 4},
        "transformer.h",
        [QKV | {"up"}, {"o"}, {"down"}],
    ),
]


@pytest.mark.parametrize(("model_type", "settings", "blocks", "partition"), UNNAMED, ids=[case[0] for case in UNNAMED])
def test_unnamed_architectures(model_type, settings, blocks, partition):
    torch.set_num_threads(1)
    family = detect_family(build(model_type, **settings, **IDS))
    assert family.blocks == blocks
    assert sorted(map(sorted, family.inputs.values())) == sorted(map(sorted, partition))
    assert family.shared_roles_source.startswith("detected")
    assert not set(family.shared_roles) & {"o", "down"}


def test_meta_and_real_models_are_detected_alike():
    real = PICO["gpt_neox"]()
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(real.config)
    assert detect_family(meta) == detect_family(real)


def test_real_forward_gives_the_same_readings_as_the_meta_one(monkeypatch):
    model = PICO["stablelm"]()
    names = [f"model.layers.0.{path}" for path in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")]

    def partition():
        readings = read_inputs(model, names)
        return [[readings[a] == readings[b] for a in names] for b in names]

    on_meta = partition()

    def fail(*_, **__):
        raise RuntimeError("no meta kernel")

    monkeypatch.setattr("basis_sharing.models.probe._skeleton", fail)
    assert partition() == on_meta == [[True, True, False], [True, True, False], [False, False, True]]
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ModelError, match=r"cannot be probed.*no meta kernel"):
        read_inputs(model.to("meta"), names)


def test_experts_and_routers_stay_dense():
    family = detect_family(PICO["mixtral"]())
    assert {role for members in family.inputs.values() for role in members} == {"q", "k", "v", "o"}


def test_state_space_blocks_beside_attention():
    model = build(
        "jamba",
        **GLU,
        num_experts=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        **IDS,
    )
    decoder = describe(model)
    assert {(p.block, p.role) for p in decoder.projections} == {
        *((0, role) for role in ("gate", "up", "down")),
        *((1, role) for role in ("q", "k", "v", "o")),
    }
    reasons = {left.name: left.reason for left in decoder.left_dense}
    assert "state-space" in reasons["model.layers.*.mamba.in_proj"]
    assert [experts.block for experts in decoder.experts] == [1]


def test_pure_state_space_model_is_refused():
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="no projection that can be compressed"):
        describe(model)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)


def test_two_stacks_are_refused_by_name():
    model = nn.Module()
    model.encoder = nn.ModuleList([_Block(), _Block()])
    model.decoder = nn.ModuleList([_Block(), _Block()])
    with pytest.raises(ModelError, match=r"more than one stack of blocks \(encoder, decoder\)"):
        find_blocks(model)


def test_no_stack_is_refused():
    model = nn.Module()
    model.only = _Block()
    with pytest.raises(ModelError, match="no list of decoder blocks"):
        find_blocks(model)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("self_attn.q_proj", "q"),
        ("attn.Wqkv", "qkv"),
        ("attn.c_proj", "o"),
        ("mlp.c_proj", "down"),
        ("self_attention.dense", "o"),
        ("self_attn.out_proj", "o"),
        ("out_proj", None),
        ("feed_forward.w1", "up"),
        ("feed_forward.w2", "down"),
        ("encoder_attn.q_proj", None),
        ("mlp.experts.0.up_proj", None),
        ("mlp.gate", None),
        ("something.else", None),
    ],
)
def test_role_by_name(path, role):
    assert role_of(path, frozenset({path})) == role


def test_w1_is_a_gate_next_to_w3():
    siblings = frozenset({"mlp.w1", "mlp.w2", "mlp.w3"})
    assert [role_of(path, siblings) for path in sorted(siblings)] == ["gate", "down", "up"]
