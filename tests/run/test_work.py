"""The work folder: what was measured once serves the next run, and only what fits is taken."""

from pathlib import Path
from typing import Any

import pytest

from basis_sharing.errors import OutputError, RecipeError
from basis_sharing.run.files import locked
from basis_sharing.run.progress import Progress
from basis_sharing.run.work import WorkFolder
from basis_sharing.verbs.compress import compress
from basis_sharing.verbs.plan import plan
from basis_sharing.verbs.study import study
from pico import PICO, pico_tokenizer, save_with_texts, weight_bytes

MEASURING = ("recording", "measuring", "calibrating")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_texts(tmp_path_factory.mktemp("work"))


def run(space: Path, output: Path, ratio: float, **settings: Any) -> set[str]:
    """Compress and return the stages of the run that measure something."""
    stages: list[Progress] = []
    settings = {"calibration": str(space / "text.txt"), "windows": 4, "length": 64, **settings}
    compress(space / "model", ratio, output=output, progress=stages.append, **settings)
    return {event.stage for event in stages if event.stage.startswith(MEASURING)}


@pytest.mark.parametrize("method", ["auto", "svd-llm", "asvd", "fwsvd"])
def test_another_ratio_measures_nothing_and_gives_the_same_bytes(method: str, space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = run(space, tmp_path / "first", 0.2, method=method, work=work)
    assert first or method == "fwsvd"  # its own stage is named otherwise
    assert not run(space, tmp_path / "again", 0.2, method=method, work=work)
    assert not run(space, tmp_path / "more", 0.4, method=method, work=work)
    run(space, tmp_path / "fresh", 0.4, method=method)
    assert weight_bytes(tmp_path / "again") == weight_bytes(tmp_path / "first")
    assert weight_bytes(tmp_path / "more") == weight_bytes(tmp_path / "fresh")


def test_without_gradients_sensitivities_are_kept_too(space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert run(space, tmp_path / "first", 0.2, gradients=False, work=work)
    assert not run(space, tmp_path / "again", 0.3, gradients=False, work=work)
    assert len(list(work.glob("sensitivity-*"))) == 1


def test_published_methods_plans_and_studies_use_what_the_planner_measured(space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(space, tmp_path / "auto", 0.2, work=work)
    assert not run(space, tmp_path / "svd-llm", 0.2, method="svd-llm", work=work)
    stages: list[Progress] = []
    settings = {"calibration": str(space / "text.txt"), "windows": 4, "length": 64, "progress": stages.append}
    plan(space / "model", 0.3, work=work, **settings)
    study(space / "model", 0.3, work=work, **settings)
    assert not [event.stage for event in stages if event.stage.startswith("recording")]


def test_fewer_roles_need_no_other_pass_over_the_text(space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(space, tmp_path / "all", 0.2, work=work)
    assert not run(space, tmp_path / "some", 0.2, roles=("gate", "up"), work=work)


@pytest.mark.parametrize("change", [{"calibration": "other.txt"}, {"windows": 3}, {"dtype": "bfloat16"}])
def test_what_does_not_fit_is_measured_again(change: dict[str, Any], space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(space, tmp_path / "first", 0.2, method="svd-llm", work=work)
    if "calibration" in change:
        change = {"calibration": str(space / change["calibration"])}
    assert run(space, tmp_path / "second", 0.2, method="svd-llm", work=work, **change)


@pytest.mark.parametrize("name", ["about.json", "moments-0001.safetensors"])
def test_what_is_damaged_is_measured_again(name: str, space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(space, tmp_path / "first", 0.2, method="svd-llm", work=work)
    (kept,) = work.glob("moments-*")
    (kept / name).write_bytes((kept / name).read_bytes()[:-10])
    assert run(space, tmp_path / "second", 0.2, method="svd-llm", work=work)
    assert weight_bytes(tmp_path / "second") == weight_bytes(tmp_path / "first")


def test_a_failure_is_gone_on_with_and_two_runs_do_not_meet(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work", "model", "float32")

    def fail(folder: Path) -> None:
        (folder / "first").write_text("done")
        (folder / "second.unfinished").write_text("")
        raise OSError(28, "No space left on device")

    def go_on(folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == ["first", "second.unfinished"]

    with pytest.raises(OutputError, match="no space is left"):
        work.measured("moments", {}, fail)
    assert work.find("moments", {}) is None
    folder = work.measured("moments", {}, go_on)
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "first"]
    (folder / "about.json").unlink()
    folder = work.measured("moments", {}, lambda folder: None)
    with locked(folder):
        assert work.measured("moments", {}, fail) == folder  # it is complete: nobody has to wait
        (folder / "about.json").unlink()
        with pytest.raises(OutputError, match="another run"):
            work.measured("moments", {}, fail)


def test_bad_work_folders_are_refused(space: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run(space, tmp_path / "out", 0.2, work=tmp_path / "file")
    with pytest.raises(RecipeError, match="in memory cannot be kept"):
        compress(PICO["llama"](), 0.2, tokenizer=pico_tokenizer(), work=tmp_path / "work", windows=4, length=64)
