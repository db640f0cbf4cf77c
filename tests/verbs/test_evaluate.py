"""One model on texts and tasks; perplexity against its definition."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import basis_sharing
from basis_sharing.errors import NumericalError, RecipeError
from basis_sharing.results.evaluation import EvaluationResult
from basis_sharing.results.measures import Perplexity
from pico import PICO, pico_tokenizer, save_pico

TEXT = "Perplexity is the exponential of the mean negative log-likelihood of a token; lower is better. " * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def perplexity(model: Any, text: Path, **settings: Any) -> Perplexity:
    given = {"tokenizer": pico_tokenizer(), "length": 64, "device": "cpu"} | settings
    return basis_sharing.evaluate(model, str(text), **given).perplexities[0]


def test_it_is_the_definition(text: Path) -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    found = basis_sharing.evaluate(model, str(text), tokenizer=tokenizer, length=100).perplexities[0]
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
    model = PICO["llama"]()
    two = perplexity(model, text, evaluation_windows=2)
    assert two.windows == 2
    assert two.fingerprint != perplexity(model, text).fingerprint


def test_families_that_need_a_bos_get_one_and_say_so(text: Path) -> None:
    found = basis_sharing.evaluate(PICO["gemma3"](), str(text), tokenizer=pico_tokenizer(), length=64).perplexities[0]
    assert found.bos
    assert found.tokens == 63 * found.windows


def test_token_windows_have_no_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", input_ids=np.arange(128).reshape(2, 64))
    found = basis_sharing.evaluate(
        PICO["llama"](), str(tmp_path / "w.npz"), tokenizer=pico_tokenizer(), length=64
    ).perplexities[0]
    assert found.bits_per_byte is None


def test_a_folder_gives_what_the_model_gives(tmp_path: Path, text: Path) -> None:
    folder = save_pico("gpt2", tmp_path / "model", max_shard_size=40_000)
    ours = perplexity(folder, text)
    assert ours == perplexity(PICO["gpt2"](), text)
    half = perplexity(folder, text, dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.perplexity == pytest.approx(ours.perplexity, rel=0.1)


def test_a_model_that_computes_nan_is_an_error(text: Path) -> None:
    model = PICO["llama"]()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN or infinity on window 1"):
        basis_sharing.evaluate(model, str(text), tokenizer=pico_tokenizer(), length=64)


def test_several_texts_have_one_perplexity_each(tmp_path: Path, text: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT.upper())
    folder = save_pico("llama", tmp_path / "model")
    found = basis_sharing.evaluate(folder, [str(text), str(other)], length=64, device="cpu")
    assert found.model == str(folder)
    assert found.perplexities == (perplexity(folder, text), perplexity(folder, other))
    assert found.tasks is None
    with pytest.raises(ValueError, match="evaluated on 2 texts"):
        found.perplexity
    found.write(tmp_path / "evaluation.json")
    assert EvaluationResult.read(tmp_path / "evaluation.json") == found


def test_tasks_and_texts_are_measured_by_one_call(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "piqa.jsonl").write_text('{"goal": "Open a jar.", "sol1": "Turn.", "sol2": "Sing.", "label": 0}\n')
    folder = save_pico("llama", tmp_path / "model")
    asked: dict[str, Any] = {"tasks": "piqa", "task_data": tmp_path}
    scored = basis_sharing.evaluate(folder, **asked)
    assert scored.perplexities == ()
    assert scored.tasks is not None
    assert [score.task for score in scored.tasks.scores] == ["piqa"]
    both = basis_sharing.evaluate(folder, str(text), length=64, cache=False, **asked)
    assert both.tasks is not None
    assert both.tasks.scores == scored.tasks.scores
    assert both.tasks.notes == ()
    assert both.perplexity == perplexity(folder, text).perplexity


def test_a_model_in_memory_is_put_back_where_it_was(text: Path) -> None:
    model = PICO["llama"]()
    before = model.model.norm.weight
    assert perplexity(model, text, device="cpu") == perplexity(model, text, device=None)
    assert model.model.norm.weight is before


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"evaluation_windows": 0}, "--evaluation-windows 0 is too small: at least 1 is needed"),
        ({"length": 1}, "--length 1 is too small: at least 2 is needed"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"limit": 3}, "name some with --tasks"),
        ({"cache": False}, "name some with --tasks"),
    ],
)
def test_wrong_settings(text: Path, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        perplexity(PICO["llama"](), text, **changed)
