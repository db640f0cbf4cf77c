"""The staged way in: limits decide what is kept, and an interruption changes nothing but the time."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.cli.main import main
from basis_sharing.errors import BasisSharingError
from basis_sharing.results.comparison import Limits
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.rollout import Rollout
from basis_sharing.run.progress import Progress
from basis_sharing.verbs import rollout as story
from basis_sharing.verbs.bench import bench
from basis_sharing.verbs.rollout import rollout
from forks import forked
from pico import save_with_texts, weight_bytes

SETTINGS: dict[str, Any] = {"windows": 4, "length": 64, "method": "svd-llm", "form": "pivoted"}
GENEROUS = Limits(max_kl=100)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_texts(tmp_path_factory.mktemp("rollout"), blocks=3)


def run(space: Path, output: Path, limits: Limits, **options: Any) -> Rollout:
    text = str(space / "text.txt")
    texts = {"text": text, "evaluation_windows": 8, "calibration": text}
    arguments = {"ratios": (0.1, 0.3), "benchmark": False, **texts, **SETTINGS, **options}
    return rollout(space / "model", output, limits, **arguments)


@pytest.fixture(scope="module")
def whole(space: Path) -> Rollout:
    """An uninterrupted rollout that reaches its last step."""
    return run(space, space / "whole", GENEROUS)


def test_the_first_step_takes_what_dominates_memory_and_the_last_one_is_kept(space: Path, whole: Rollout) -> None:
    assert [(step.roles, step.ratio) for step in whole.steps] == [
        (("gate", "up", "down"), 0.1),
        (("q", "k", "v", "o", "gate", "up", "down"), 0.1),
        (("q", "k", "v", "o", "gate", "up", "down"), 0.3),
    ]
    assert whole.finished
    assert whole.best == whole.steps[-1]
    assert [step.parameters for step in whole.steps] == sorted((s.parameters for s in whole.steps), reverse=True)
    assert CompressionResult.read(space / "whole" / "best" / "basis_sharing.json").recipe.ratio == 0.3
    assert not list((space / "whole" / "steps").glob("*/model"))
    assert Rollout.read(space / "whole" / "rollout.json") == whole


def test_limits_in_the_middle_keep_the_step_before(space: Path, whole: Rollout, tmp_path: Path) -> None:
    kls = [step.mean_kl for step in whole.steps]
    assert kls[2] > max(kls[:2])
    found = run(space, tmp_path / "out", Limits(max_kl=(max(kls[:2]) + kls[2]) / 2))
    assert [step.held for step in found.steps] == [True, True, False]
    assert found.best == found.steps[1]
    assert "Kept: 10%" in found.sentence
    assert CompressionResult.read(tmp_path / "out" / "best" / "basis_sharing.json").recipe.ratio == 0.1
    assert (tmp_path / "out" / "steps" / found.steps[2].name / "comparison.json").is_file()


def test_limits_that_the_first_step_breaks_keep_nothing(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rollout", str(space / "model"), "-o", str(tmp_path / "out"), "--max-kl", "0", "--no-benchmark"]
    arguments += ["--calibration", str(space / "text.txt"), "--text", str(space / "text.txt"), "--length", "64"]
    for _ in range(2):  # the second time there is nothing left to do
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 1
        assert "Nothing is kept: already the first step" in capsys.readouterr().out
    assert not (tmp_path / "out" / "best").exists()
    assert not list((tmp_path / "out" / "steps").glob("*/model"))


def killed_at(stage: str, space: Path, output: Path, **options: Any) -> int:
    """Run in a fork that kills itself at the end of a stage; return its exit code."""

    def kill(event: Progress) -> None:
        if stage in event.stage and event.done == event.total:
            os.kill(os.getpid(), signal.SIGKILL)

    return forked(lambda: run(space, output, GENEROUS, progress=kill, **options)).wait().returncode


@pytest.mark.parametrize(
    "stage", ["01-gate-up-down-0.1: calibrating", "02-q-k-v-o-gate-up-down-0.1: comparing", "0.3: factorizing"]
)
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    stage: str, space: Path, whole: Rollout, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert killed_at(stage, space, output) == -signal.SIGKILL
    assert not (output / "best").exists()
    found = run(space, output, GENEROUS)
    assert found.steps == whole.steps
    assert weight_bytes(output / "best") == weight_bytes(space / "whole" / "best")


def test_every_step_is_benchmarked_and_a_kill_there_changes_no_byte(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick: dict[str, Any] = {"prompt_tokens": 24, "new_tokens": 3, "repeats": 2, "precision": None, "memory": False}
    monkeypatch.setattr("basis_sharing.benchmark.turns._SECONDS_PER_REPEAT", 0.0)
    monkeypatch.setattr(story, "bench", partial(bench, **quick))
    output, stage = tmp_path / "out", "01-gate-up-down-0.3: measuring speed"
    assert killed_at(stage, space, output, ratios=(0.3,), benchmark=True) == -signal.SIGKILL
    assert not Rollout.read(output / "rollout.json").steps
    found = run(space, output, GENEROUS, ratios=(0.3,), benchmark=True)
    assert all(step.prefill_speed and step.decode_speed for step in found.steps)
    run(space, tmp_path / "whole", GENEROUS, ratios=(0.3,))
    assert weight_bytes(output / "best") == weight_bytes(tmp_path / "whole" / "best")


def test_steps_share_what_is_measured_and_the_end_leaves_none_of_it(space: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    run(space, tmp_path / "out", GENEROUS, progress=lambda event: stages.append(event.stage))
    assert {stage.split(":")[0] for stage in stages if "calibrating" in stage} == {"01-gate-up-down-0.1"}
    assert not (tmp_path / "out" / "work").exists()


@pytest.mark.parametrize("moment", ["state written", "renamed", "half removed"])
def test_an_interruption_of_the_last_moves_is_mended(moment: str, space: Path, whole: Rollout, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(space, output, GENEROUS)
    last = output / "steps" / whole.steps[-1].name / "model"
    if moment == "state written":
        (output / "best").rename(last)
    if moment == "half removed":
        (output / "steps" / whole.steps[0].name / "model").mkdir()
    run(space, output, GENEROUS)
    assert weight_bytes(output / "best") == weight_bytes(space / "whole" / "best")
    assert not list((output / "steps").glob("*/model"))


def test_what_makes_no_sense_is_refused(space: Path, whole: Rollout, tmp_path: Path) -> None:
    def refused(output: Path, limits: Limits = GENEROUS, **options: Any) -> str:
        with pytest.raises(BasisSharingError) as caught:
            run(space, output, limits, **options)
        return str(caught.value)

    out = tmp_path / "out"
    assert "needs a limit" in refused(out, Limits())
    assert "no baseline" in refused(out, Limits(max_drift=0.1))
    assert "must rise" in refused(out, ratios=(0.3, 0.1))
    assert "out of range" in refused(out, ratios=(0.3, 1.1))
    assert "no meaning for a rollout" in refused(out, roles=("q",))
    assert not out.exists()
    assert "another limits" in refused(space / "whole", Limits(max_kl=99))
    assert "another compression" in refused(space / "whole", seed=1)
    (out).mkdir()
    (out / "mine.txt").write_text("mine")
    assert "holds no rollout" in refused(out, overwrite=True)
    assert json.loads((space / "whole" / "rollout.json").read_text())["finished"]
    assert (space / "whole" / "best").is_dir()


def test_overwriting_starts_anew(space: Path, tmp_path: Path) -> None:
    run(space, tmp_path / "out", Limits(max_kl=0))
    found = run(space, tmp_path / "out", GENEROUS, ratios=(0.2,), overwrite=True)
    assert [step.ratio for step in found.steps] == [0.2, 0.2]
    assert (tmp_path / "out" / "best").is_dir()
