"""Perplexity against its definition."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import basis_sharing
from basis_sharing.errors import NumericalError, RecipeError
from basis_sharing.calibration.windows import window_length
from pico import PICO, pico_tokenizer, save_pico

TEXT = "Perplexity is the exponential of the mean negative log-likelihood of a token; lower is better. " * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_it_is_the_definition(text: Path) -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    found = basis_sharing.evaluate(model, str(text), tokenizer=tokenizer, length=100)
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    windows = ids[: len(ids) // 100 * 100].view(-1, 100)
    total = 0.0
    with torch.no_grad():
        for window in windows:
            total += model(input_ids=window[None], labels=window[None]).loss.item() * 99
    mean = total / (99 * len(windows))
    assert found.windows == len(windows)
    assert found.tokens == 99 * len(windows)
    assert found.nats_per_token == pytest.approx(mean, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(mean / math.log(2), rel=1e-5)  # one token per byte
    assert not found.bos


def test_only_the_first_windows(text: Path) -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    two = basis_sharing.evaluate(model, str(text), tokenizer=tokenizer, length=64, windows=2)
    assert two.windows == 2
    assert two.fingerprint != basis_sharing.evaluate(model, str(text), tokenizer=tokenizer, length=64).fingerprint


def test_families_that_need_a_bos_get_one_and_say_so(text: Path) -> None:
    found = basis_sharing.evaluate(PICO["gemma3"](), str(text), tokenizer=pico_tokenizer(), length=64)
    assert found.bos
    assert found.tokens == 63 * found.windows


def test_token_windows_have_no_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", input_ids=np.arange(128).reshape(2, 64))
    found = basis_sharing.evaluate(PICO["llama"](), str(tmp_path / "w.npz"), tokenizer=pico_tokenizer(), length=64)
    assert found.bits_per_byte is None


def test_a_folder_gives_what_the_model_gives(tmp_path: Path, text: Path) -> None:
    folder = save_pico("gpt2", tmp_path / "model", max_shard_size=40_000)
    ours = basis_sharing.evaluate(folder, str(text), length=64)
    assert ours == basis_sharing.evaluate(PICO["gpt2"](), str(text), tokenizer=pico_tokenizer(), length=64)
    half = basis_sharing.evaluate(folder, str(text), length=64, dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    assert half.perplexity == pytest.approx(ours.perplexity, rel=0.1)


def test_a_model_that_computes_nan_is_an_error(text: Path) -> None:
    model = PICO["llama"]()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN or infinity on window 1"):
        basis_sharing.evaluate(model, str(text), tokenizer=pico_tokenizer(), length=64)


def test_window_length() -> None:
    config = PICO["llama"]().config
    assert window_length(config, None) == 256
    assert window_length(config, 100) == 100
    with pytest.raises(RecipeError, match="more than the 256 tokens"):
        window_length(config, 257)
    config.max_position_embeddings = 8192
    assert window_length(config, None) == 2048
