"""Recovery: a compressed folder becomes a better one of the same structure and size."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from basis_sharing.cli.main import main
from basis_sharing.errors import ModelError, OutputError, RecipeError
from basis_sharing.recipe.recovery import RecoverySettings
from basis_sharing.repair import whole_training
from basis_sharing.repair.whole_training import TrainingSchedule
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.verbs.compress import compress
from basis_sharing.verbs.recover import recover, settled
from pico import save_with_texts, weight_bytes

TOO_HIGH = 0.01


class Killed(BaseException):
    """Ends a run as no error of its own does."""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, two texts, and the model compressed."""
    root = save_with_texts(tmp_path_factory.mktemp("recovery"), blocks=3)
    text = str(root / "text.txt")
    compress(
        root / "model",
        ratio=0.4,
        output=root / "small",
        calibration=text,
        windows=4,
        length=64,
        evaluate=(text,),
        evaluation_windows=2,
    )
    return root


def recovered(space: Path, output: Path, **changes: Any) -> CompressionResult:
    settings = {"calibration": str(space / "text.txt"), "length": 64, "windows": 24, "epochs": 2, **changes}
    return recover(space / "small", output, **settings)


@pytest.mark.parametrize("preset", ["distill", "next-token", "paper"])
def test_every_preset_gains_and_keeps_structure_and_size(preset: str, space: Path, tmp_path: Path) -> None:
    text = str(space / "text.txt")
    rate = {"learning_rate": 1e-2} if preset == "paper" else {}
    result = recovered(space, tmp_path / "out", preset=preset, evaluate=(text,), evaluation_windows=2, **rate)
    report = result.recovery
    assert report is not None
    assert report.loss_after < report.loss_before
    assert report.perplexity_after[0].perplexity < report.perplexity_before[0].perplexity
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (space / "small", tmp_path / "out"))
    assert before == after
    small, larger = (AutoModelForCausalLM.from_pretrained(folder) for folder in (space / "small", tmp_path / "out"))
    assert {n: (p.shape, p.dtype) for n, p in small.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in larger.named_parameters()
    }
    assert not torch.equal(
        *(next(m for m in model.modules() if isinstance(m, FactorizedLinear)).coeff.weight for model in (small, larger))
    )
    assert CompressionResult.read(tmp_path / "out" / RESULT_FILE) == result
    assert result.perplexity_after == report.perplexity_after
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "trained" in (tmp_path / "out" / "README.md").read_text()


def test_a_rate_that_is_too_high_is_cut_until_it_gains(space: Path, tmp_path: Path) -> None:
    report = recovered(space, tmp_path / "out", learning_rate=TOO_HIGH, epochs=10).recovery
    assert report is not None
    assert report.slowed
    assert not report.diverged
    assert report.loss_after < report.loss_before


@pytest.mark.parametrize(("preset", "rate"), [("distill", None), ("distill", TOO_HIGH), ("paper", None)])
def test_killed_half_way_it_ends_with_the_same_bytes(
    preset: str, rate: float | None, space: Path, tmp_path: Path
) -> None:
    options = {"preset": preset, "learning_rate": rate}
    whole = recovered(space, tmp_path / "whole", **options)

    def killing(event: Progress) -> None:
        if event.stage == "recovering" and event.done == round(0.7 * event.total):
            raise Killed

    with pytest.raises(Killed):
        recovered(space, tmp_path / "out", **options, progress=killing)
    assert not (tmp_path / "out").exists()
    steps = []
    again = recovered(
        space, tmp_path / "out", **options, progress=lambda e: steps.append(e) if e.stage == "recovering" else 0
    )
    assert again.recovery == whole.recovery
    assert len(steps) < 0.5 * steps[-1].total
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "whole")


def test_an_interrupted_recovery_refuses_other_settings(space: Path, tmp_path: Path) -> None:
    def killing(event: Progress) -> None:
        if event.stage == "recovering" and event.done == 2:
            raise Killed

    with pytest.raises(Killed):
        recovered(space, tmp_path / "out", progress=killing)
    with pytest.raises(OutputError, match=r"interrupted run with setting epochs = 2.0, now it is 3.0"):
        recovered(space, tmp_path / "out", epochs=3)


def test_one_that_diverges_is_stopped_and_keeps_the_best_state(space: Path, tmp_path: Path) -> None:
    result = recovered(space, tmp_path / "out", learning_rate=1e3, epochs=10)
    assert result.recovery is not None
    assert result.recovery.diverged
    assert result.recovery.loss_after == result.recovery.loss_before
    assert weight_bytes(tmp_path / "out") == weight_bytes(space / "small")
    assert any("diverged" in note for note in result.notes)


def test_minutes_are_turned_into_steps_and_evaluations() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    recovery: Any = SimpleNamespace(
        parameters={"weight": weight}, training=torch.zeros(3, 8), loss=lambda _: 2 * weight, held_out_loss=lambda: 0.5
    )

    def schedule(minutes: float) -> TrainingSchedule:
        seconds = map(float, itertools.count())  # whatever is timed takes one
        return settled(RecoverySettings.create(minutes=minutes), recovery, seconds.__next__)

    assert schedule(1) == TrainingSchedule(steps=60 - 5, evaluations=4, loss_before=0.5)
    assert schedule(0.2) == TrainingSchedule(
        steps=12 - 3, evaluations=2, loss_before=0.5
    )  # a quarter is for evaluating
    assert schedule(0.05) == TrainingSchedule(steps=1, evaluations=1, loss_before=0.5)
    assert weight.grad is None
    with pytest.raises(RecipeError, match=r"--minutes 0.04 are too few for one step here: at least 0.1"):
        schedule(0.04)


def test_minutes_are_enough_to_say(space: Path, tmp_path: Path) -> None:
    result = recovered(space, tmp_path / "out", epochs=None, minutes=0.05)
    assert result.recovery is not None
    assert result.recovery.steps >= 1


def test_the_distillation_loss_is_the_kl_divergence() -> None:
    ours, theirs = torch.randn(2, 1, 7, 11, generator=torch.Generator().manual_seed(0))
    expected = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(whole_training.distillation_loss(ours, theirs, theirs), expected)
    assert whole_training.distillation_loss(ours, ours, ours).item() == pytest.approx(0, abs=1e-6)


def test_bad_input_is_one_sentence(space: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder of a model compressed by basis-sharing"):
        recover(space / "model", tmp_path / "out")
    with pytest.raises(RecipeError, match="unknown preset 'magic': choose from distill, next-token, paper"):
        recovered(space, tmp_path / "out", preset="magic")
    with pytest.raises(RecipeError, match="either the minutes or the epochs"):
        recovered(space, tmp_path / "out", minutes=3)
    other = save_with_texts(tmp_path / "elsewhere", blocks=3) / "model"
    AutoModelForCausalLM.from_pretrained(other).half().save_pretrained(other)
    with pytest.raises(ModelError, match=r"is not the model that .* was when it was compressed"):
        recovered(space, tmp_path / "out", original=other)
    assert not (tmp_path / "out").exists()


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(RecipeError, match="setting 'learning_rate' with value -1"):
        RecoverySettings.create(learning_rate=-1)


def test_the_verb_prints_what_was_gained(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recover", str(space / "small"), "-o", str(tmp_path / "out"), "--length", "64", "--windows", "24"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *arguments,
                "--epochs",
                "1",
                "--calibration",
                str(space / "text.txt"),
                "--evaluate",
                str(space / "text.txt"),
            ]
        )
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "KL divergence from the original" in printed
    assert "perplexity" in printed


@pytest.mark.parametrize("preset", ["distill", "next-token"])
def test_a_model_in_few_bits_learns_its_scales_and_keeps_its_codes(preset: str, space: Path, tmp_path: Path) -> None:
    text = str(space / "text.txt")
    compress(
        space / "model",
        bits=3.5,
        embedding_bits=8,
        scale_group=16,
        rank_multiple=8,
        output=tmp_path / "small",
        calibration=text,
        windows=4,
        length=64,
    )
    settings: dict[str, Any] = {"calibration": text, "length": 64, "windows": 24, "epochs": 2, "preset": preset}
    result = recover(tmp_path / "small", tmp_path / "out", **settings)
    assert result.recovery is not None
    assert result.recovery.loss_after < result.recovery.loss_before
    small, larger = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("small", "out"))
    after = dict(larger.named_parameters())
    changed = {n: not torch.equal(p, after[n]) for n, p in small.named_parameters()}
    assert not any(moved for name, moved in changed.items() if name.endswith((".packed", ".zero_points")))
    assert all(moved for name, moved in changed.items() if name.endswith(".scales") and "layers" in name)


def test_adapters_on_coefficients_in_few_bits_are_refused(space: Path, tmp_path: Path) -> None:
    compress(space / "model", method="rtn", bits=4, scale_group=16, output=tmp_path / "small")
    with pytest.raises(RecipeError, match=r"this model has none but those in few bits: use --preset distill"):
        recover(tmp_path / "small", tmp_path / "out", calibration=str(space / "text.txt"), length=64, preset="paper")
