"""A study of a whole model, in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.study import StudyResult
from basis_sharing.run.progress import Progress
from basis_sharing.verbs.study import study
from pico import PICO, build, pico_tokenizer


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


def run(model: Any, text: str, ratio: float = 0.4, **settings: Any) -> StudyResult:
    return study(model, ratio, tokenizer=pico_tokenizer(), calibration=text, windows=4, length=64, **settings)


@pytest.mark.parametrize("gradients", [True, False])
def test_all_pairs_of_all_roles_and_the_model_stays_as_it_is(text: str, gradients: bool) -> None:
    model = PICO["llama"]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    events: list[Progress] = []
    result = run(model, text, ratio=0.35, gradients=gradients, progress=events.append)
    assert [role.name for role in result.study.roles] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert all(summary.pairs == 10 and summary.neighbours == 4 for r in result.study.roles for summary in r.summaries)
    assert result.study.ratios == (0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
    assert sum(event.stage == "comparing pairs" for event in events) == 70
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert StudyResult.model_validate_json(result.model_dump_json()) == result


def test_other_families(text: str) -> None:
    assert [role.name for role in run(PICO["gpt2"](), text).study.roles] == ["qkv", "o", "up", "down"]


def test_settings_that_mean_nothing_here(text: str) -> None:
    with pytest.raises(RecipeError, match="'method' has no meaning for a study"):
        run(PICO["gpt2"](), text, method="svd")
    with pytest.raises(RecipeError, match="out of range"):
        run(PICO["gpt2"](), text, ratio=1.5)
    with pytest.raises(RecipeError, match="--distance 0 is too small"):
        run(PICO["gpt2"](), text, distance=0)


def test_one_layer_has_no_pair(text: str) -> None:
    model = build("gpt2", vocab_size=260, n_embd=48, n_layer=1, n_head=4, n_positions=256)
    with pytest.raises(ModelError, match="no pair"):
        run(model, text)
