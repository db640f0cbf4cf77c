import pytest
import torch

from basis_sharing import compress
from basis_sharing.benchmark.ideal import holds_stacked_experts, work_of
from basis_sharing.checkpoint.loading import load_any
from pico import PICO, build, save_pico

TOKENS = 16
LLAMA_BLOCK = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96  # q and o, k and v, the feed-forward
CAUSAL_PAIRS = TOKENS * (TOKENS + 1) // 2


def prompt(tokens=TOKENS):
    return torch.arange(tokens)[None]


def test_multiply_adds_of_a_dense_model():
    work = work_of(PICO["llama"](), prompt())
    attention = 5 * CAUSAL_PAIRS * 2 * 64  # scores and mixing, over all heads
    blocks = 5 * TOKENS * LLAMA_BLOCK
    assert work.prefill_multiply_adds == work.first_token_multiply_adds == blocks + attention + 64 * 260


def test_weights_read_by_one_step():
    work = work_of(PICO["llama"](), prompt())
    norms = (5 * 2 + 1) * 64
    assert work.weight_bytes_per_step == 4 * (5 * LLAMA_BLOCK + norms + 64 * 260)  # the tied head is read whole
    assert work.products_per_step == 5 * 7 + 1
    half = work_of(PICO["llama"]().to(torch.bfloat16), prompt())
    assert half.weight_bytes_per_step == work.weight_bytes_per_step // 2


@pytest.mark.parametrize("name", ["gpt2", "opt", "mixtral", "gemma3", "phi3"])
def test_every_family_is_counted(name):
    model = PICO[name]()
    work = work_of(model, prompt())
    assert work.prefill_multiply_adds == work.first_token_multiply_adds > 0
    embeddings = model.get_input_embeddings().weight.numel()
    everything = sum(p.numel() for p in model.parameters())
    if name == "mixtral":
        everything -= 4 * 2 * 3 * 64 * 96  # the experts that a token does not use
    assert 4 * (everything - 2 * embeddings) <= work.weight_bytes_per_step <= 4 * (everything + embeddings)


def test_experts_are_counted_as_often_as_tokens_are_sent_to_them():
    work = work_of(PICO["mixtral"](), prompt())
    block = 2 * 64 * 64 + 2 * 64 * 32 + 64 * 4 + 2 * 3 * 64 * 96  # attention, router, two experts
    attention = 4 * CAUSAL_PAIRS * 2 * 64
    assert work.prefill_multiply_adds == 4 * TOKENS * block + attention + 64 * 260
    assert work.weight_bytes_per_step == 4 * (4 * block + (4 * 2 + 1) * 64 + 64 * 260)


def test_a_shared_basis_is_counted_at_every_use(tmp_path):
    folder = tmp_path / "small"
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    settings = {"method": "basis-sharing", "calibration": str(text), "windows": 4, "length": 64}
    _, result = compress(save_pico("llama", tmp_path / "model"), 0.3, output=folder, **settings)
    dense, small = (work_of(load_any(path)[0], prompt()) for path in (tmp_path / "model", folder))
    before, after = result.before, result.after
    saved = before.projection_multiplications - after.projection_multiplications
    assert dense.prefill_multiply_adds - small.prefill_multiply_adds == TOKENS * saved
    assert dense.weight_bytes_per_step - small.weight_bytes_per_step == 4 * saved
    assert 0 < saved < before.projection_parameters - after.projection_parameters
    assert small.products_per_step == dense.products_per_step + sum(len(group.members) for group in result.groups)


def test_stacked_experts_are_seen():
    assert holds_stacked_experts(PICO["mixtral"]())
    assert not holds_stacked_experts(PICO["llama"]())


def test_counting_leaves_no_hooks():
    model = build("gpt2", vocab_size=260, n_embd=48, n_layer=1, n_head=4, n_positions=64)
    work_of(model, prompt())
    assert not any(module._forward_pre_hooks for module in model.modules())
