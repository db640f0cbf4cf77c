"""Text that a model writes for its own calibration."""

import random
from typing import Any

import pytest
import torch
from torch import nn

from basis_sharing.calibration.self_text import write_windows
from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.run.progress import Progress
from pico import PICO, VOCAB, pico_tokenizer

TOKENIZER = pico_tokenizer()


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma3", "mistral"])
def test_every_family_writes(name: str) -> None:
    model = PICO[name]()
    ids = write_windows(model, TOKENIZER, windows=2, length=48, seed=0)  # longer than a sliding window of 32
    assert ids.shape == (2, 48)
    assert ids.dtype == torch.int64
    assert ids.min() >= 0
    assert ids.max() < VOCAB
    assert ids[:, 0].tolist() == [TOKENIZER.bos_token_id] * 2
    assert not torch.equal(ids[0], ids[1])


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_tokens_follow_the_models_own_distribution(name: str) -> None:
    """What is written with a cache has the likelihood the model gives it in one pass without one."""
    model = PICO[name]()
    for module in model.modules():  # a sharp distribution: the wrong logits would be found out
        if isinstance(module, nn.Linear) and module.out_features == VOCAB:
            module.register_forward_hook(lambda _module, _args, output: 100 * output)
    ids = write_windows(model, TOKENIZER, windows=4, length=48, seed=0)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    likely = logits.softmax(-1).gather(-1, ids[:, 1:, None])
    assert likely.mean() > 0.95


def test_seed_decides_and_global_state_is_left_alone() -> None:
    model = PICO["llama"]()
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate()
    first = write_windows(model, TOKENIZER, windows=3, length=12, seed=1)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    torch.rand(3)
    assert torch.equal(first, write_windows(model, TOKENIZER, windows=3, length=12, seed=1))
    assert not torch.equal(first, write_windows(model, TOKENIZER, windows=3, length=12, seed=2))


def test_without_bos_windows_start_with_ordinary_tokens() -> None:
    tokenizer = pico_tokenizer()
    tokenizer.bos_token = None
    ids = write_windows(PICO["llama"](), tokenizer, windows=20, length=2, seed=1)
    assert len(set(ids[:, 0].tolist())) > 10
    assert not set(ids[:, 0].tolist()) & set(tokenizer.all_special_ids)
    assert torch.equal(ids, write_windows(PICO["llama"](), tokenizer, windows=20, length=2, seed=1))


def test_progress_counts_tokens_over_several_batches() -> None:
    events: list[Progress] = []
    ids = write_windows(PICO["llama"](), TOKENIZER, windows=11, length=5, seed=1, progress=events.append)
    assert ids.shape == (11, 5)
    assert [event.done for event in events] == [8, 16, 24, 32, 35, 38, 41, 44]
    assert {(event.total, event.unit) for event in events} == {(44, "tokens")}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_maximum_positions_are_respected(name: str) -> None:
    model = PICO[name]()
    assert write_windows(model, TOKENIZER, windows=1, length=256, seed=1).shape == (1, 256)
    with pytest.raises(CorpusError, match="set --length to its 256 or fewer"):
        write_windows(model, TOKENIZER, windows=1, length=257, seed=1)


def test_broken_model_is_reported() -> None:
    model: Any = PICO["llama"]()
    nn.init.constant_(model.model.layers[1].mlp.down_proj.weight, torch.nan)
    with pytest.raises(NumericalError, match="NaN"):
        write_windows(model, TOKENIZER, windows=1, length=4, seed=1)
