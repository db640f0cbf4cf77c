"""A compression that was killed goes on where it was, and ends with the bytes of one that was not."""

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from basis_sharing.blocks import states
from basis_sharing.cli.main import main
from basis_sharing.errors import OutputError, PlanError
from basis_sharing.run import resume
from basis_sharing.run.durable import flush
from basis_sharing.run.progress import Progress
from basis_sharing.verbs.compress import compress
from forks import forked
from pico import TEXT, save_pico, save_with_texts, weight_bytes

METHODS: dict[str, dict[str, Any]] = {
    "auto": {"ratio": 0.3},
    "auto without gradients": {"ratio": 0.3, "gradients": False},
    "basis-sharing": {"ratio": 0.3, "method": "basis-sharing", "refit": "always"},
    "fwsvd": {"ratio": 0.3, "method": "fwsvd"},
}
STAGES = [
    ("auto", "recording block inputs"),
    ("auto", "measuring the loss"),
    ("auto", "measuring gradients"),
    ("auto", "measuring candidates"),
    ("auto", "measuring shared candidates"),
    ("auto", "factorizing"),
    ("auto", "refitting to the compressed flow"),
    ("auto", "evaluating the result"),
    ("auto without gradients", "measuring sensitivity"),
    ("basis-sharing", "calibrating"),
    ("basis-sharing", "calibrating on the compressed model"),
    ("basis-sharing", "refitting"),
    ("fwsvd", "factorizing"),
]
Ended = Callable[[Progress], None]


class Killed(BaseException):
    """Ends a run as no error of its own does."""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_with_texts(tmp_path_factory.mktemp("resume"), blocks=3)
    for name in METHODS:
        run(root, root / name, name)
    return root


@pytest.fixture(autouse=True)
def every_resume_point_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_SHARE", float("inf"))


def run(space: Path, output: Path, method: str, **changes: Any) -> Counter[str]:
    """Compress and count the events of each stage."""
    stages: Counter[str] = Counter()
    killing = changes.pop("killing", lambda event: None)

    def progress(event: Progress) -> None:
        stages[event.stage] += 1
        killing(event)

    text = str(space / "text.txt")
    settings = {"calibration": text, "windows": 16, "length": 32, "evaluate": (text,), "evaluation_windows": 2}
    compress(space / "model", output=output, progress=progress, **{**settings, **METHODS[method], **changes})
    return stages


def killed_at(stage: str, share: float = 0.5) -> Ended:
    def killing(event: Progress) -> None:
        if event.stage == stage and event.done >= share * event.total:
            raise Killed

    return killing


@pytest.mark.parametrize(("method", "stage"), STAGES)
def test_interrupted_in_any_stage_it_ends_with_the_same_bytes(
    method: str, stage: str, space: Path, tmp_path: Path
) -> None:
    output, events = tmp_path / "out", []
    with pytest.raises(Killed):
        run(space, output, method, killing=killed_at(stage))
    assert not output.exists()
    run(space, output, method, killing=events.append)
    assert weight_bytes(output) == weight_bytes(space / method)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    earlier = [s for m, s in STAGES[: STAGES.index((method, stage))] if m == method]
    assert not {event.stage for event in events} & set(earlier)


@pytest.mark.parametrize(
    "stage", ["recording block inputs", "measuring the loss", "measuring gradients", "factorizing"]
)
def test_what_a_stage_has_done_is_not_done_again(stage: str, space: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "out", []
    with pytest.raises(Killed):
        run(space, output, "auto", killing=killed_at(stage, 0.7))
    stages = run(space, output, "auto", killing=lambda event: seen.append(event) if event.stage == stage else None)
    assert 0 < stages[stage] <= 0.5 * seen[-1].total
    assert seen[-1].done == seen[-1].total


def killed_for_good(stage: str) -> Ended:
    """Return what ends this process, which is a fork, in the middle of a stage."""

    def killing(event: Progress) -> None:
        if event.stage == stage and 2 * event.done >= event.total:
            os.kill(os.getpid(), signal.SIGKILL)

    return killing


@pytest.mark.parametrize("stage", ["measuring gradients", "factorizing", "refitting to the compressed flow"])
def test_killed_for_good_it_ends_with_the_same_bytes(stage: str, space: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    killed = forked(lambda: run(space, output, "auto", killing=killed_for_good(stage))).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")
    assert {path.name for path in tmp_path.iterdir()} <= {"out", ".out.lock"}


@pytest.mark.parametrize("stage", ["factorizing", "refitting to the compressed flow"])
def test_whatever_file_is_damaged_it_ends_with_the_same_bytes(stage: str, space: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "out", tmp_path / "out.work"
    with pytest.raises(Killed):
        run(space, output, "auto", killing=killed_at(stage))
    for path in [path for path in work.rglob("*") if path.is_file()]:
        os.truncate(path, path.stat().st_size // 2)
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


def test_damaged_while_measuring_it_ends_with_the_same_bytes(space: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "out", tmp_path / "out.work"
    for name in ("tape", "gradients", "loss", "taped"):
        with pytest.raises(Killed):
            run(space, output, "auto", killing=killed_at("measuring gradients"))
        (path,) = work.rglob(f"{name}.unfinished")
        os.truncate(path, path.stat().st_size // 2)
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


def test_a_block_that_was_refitted_and_is_damaged_is_refitted_again(space: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "out", tmp_path / "out.work"
    with pytest.raises(Killed):
        run(space, output, "auto", killing=killed_at("refitting to the compressed flow"))
    second = next(work.rglob("block-00001.safetensors"))
    os.truncate(second, second.stat().st_size // 2)
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratio": 0.4}, "with setting ratio = 0.3, now it is 0.4"),
        ({"calibration": "other.txt"}, "the calibration text changed"),
        ({"windows": 3}, "the calibration text changed"),
        ({"model": "other"}, "the model changed"),
    ],
)
def test_an_interrupted_run_is_not_mixed_with_another(
    changes: dict[str, Any], sentence: str, space: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(Killed):
        run(space, output, "auto", killing=killed_at("factorizing"))
    if "calibration" in changes:
        changes = {"calibration": str(space / changes["calibration"])}
    root = space
    if "model" in changes:
        root, changes = tmp_path / "changed", {}
        save_pico("llama", root / "model", dtype=torch.bfloat16, blocks=3)
        (root / "text.txt").write_text(TEXT)
    for _ in range(2):
        with pytest.raises(OutputError, match=sentence):
            run(root, output, "auto", **changes)
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


def test_after_an_error_another_target_goes_on(space: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(PlanError, match="cannot be met"):
        run(space, output, "auto", ratio=None, max_bytes=1000)
    stages = run(space, output, "auto")
    assert not {"recording block inputs", "measuring gradients", "measuring candidates"} & set(stages)
    assert weight_bytes(output) == weight_bytes(space / "auto")


@pytest.mark.parametrize("stage", ["recording block inputs", "measuring gradients", "factorizing"])
def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(
    stage: str, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, full = tmp_path / "out", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> None:
        raise full

    def fill(event: Progress) -> None:
        if event.stage == stage and 2 * event.done >= event.total:
            monkeypatch.setattr("basis_sharing.run.durable.flush", fail)

    with pytest.raises(OutputError, match="no space is left for"):
        run(space, output, "auto", killing=fill)
    monkeypatch.setattr("basis_sharing.run.durable.flush", flush)
    assert not output.exists()
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


def test_block_inputs_that_do_not_fit_the_disk_are_held_in_memory(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr(states, "_DISK_SHARE", 0.0)
    with pytest.raises(Killed):
        run(space, output, "auto", killing=killed_at("measuring gradients"))
    assert not list((tmp_path / "out.work").rglob("tape*"))
    run(space, output, "auto")
    assert weight_bytes(output) == weight_bytes(space / "auto")


def test_an_interrupt_says_how_to_go_on(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("basis_sharing.treatments.stage.execute", interrupted)
    model, text = str(space / "model"), str(space / "text.txt")
    few = ["--calibration", text, "--windows", "4", "--length", "64"]
    with pytest.raises(SystemExit) as ended:
        main(["compress", model, "-o", str(tmp_path / "out"), "--ratio", "0.3", *few])
    assert ended.value.code == 130
    assert "the same command goes on with what is done, kept in " in capsys.readouterr().err
    assert (tmp_path / "out.work").is_dir()
