"""A model folder is complete or not there."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from basis_sharing.checkpoint import writer
from basis_sharing.checkpoint.writer import check_space, publish, reserve
from basis_sharing.errors import OutputError
from basis_sharing.run.files import output_errors
from forks import forked


def test_a_finished_folder_replaces_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with reserve(out, overwrite=False, inputs=[tmp_path / "in"]) as staging:
        (staging / "file").write_text("new")
        assert not out.exists()
        publish(staging, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "new"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with reserve(tmp_path / "deep" / "out", overwrite=False, inputs=[]) as staging:
            (staging / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def occupied(tmp_path: Path, *names: str) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("old")
    return out


def refuse(out: Path, sentence: str, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in out.parent.rglob("*"))
    with pytest.raises(OutputError, match=sentence), reserve(out, overwrite=overwrite, inputs=inputs):
        pass
    assert sorted((path, path.stat().st_mtime_ns) for path in out.parent.rglob("*")) == before


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    refuse(occupied(tmp_path, "config.json"), "pass --overwrite")


def test_overwrite_replaces_a_model_folder_completely(tmp_path: Path) -> None:
    out = occupied(tmp_path, "config.json", "model.safetensors")
    with reserve(out, overwrite=True, inputs=[]) as staging:
        (staging / "config.json").write_text("new")
        assert (out / "config.json").read_text() == "old"
        publish(staging, out)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_overwrite_spares_what_is_no_model(tmp_path: Path) -> None:
    refuse(occupied(tmp_path, "thesis.tex"), "not a model folder", overwrite=True)


def test_output_may_not_be_or_contain_an_input(tmp_path: Path) -> None:
    out = occupied(tmp_path, "config.json", "text.txt")
    refuse(out, "is, or contains, the input", overwrite=True, inputs=(out,))
    refuse(out, "is, or contains, the input", overwrite=True, inputs=(out / "text.txt",))
    link = tmp_path / "link"
    link.symlink_to(out)
    refuse(link, "is, or contains, the input", overwrite=True, inputs=(out,))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    refuse(tmp_path / "out", "is a file", overwrite=True)


def test_two_runs_at_once_and_a_killed_one(tmp_path: Path) -> None:
    def hold() -> None:
        with reserve(tmp_path / "out", overwrite=False, inputs=[]) as staging:
            (staging / "model.safetensors").write_text("half")
            (tmp_path / "ready").touch()
            time.sleep(60)

    process = forked(hold)
    while not (tmp_path / "ready").exists():
        assert process.runs
        time.sleep(0.01)
    refuse(tmp_path / "out", "another run is writing")
    process.kill()
    assert process.wait().returncode == -signal.SIGKILL
    (tmp_path / "ready").unlink()
    assert not (tmp_path / "out").exists()
    with reserve(tmp_path / "out", overwrite=False, inputs=[]) as staging:
        assert list(staging.iterdir()) == []
        publish(staging, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_space_is_known_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path / "not" / "yet", 1)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * 2**20))
    with pytest.raises(OutputError, match=r"4,112 MiB are needed .* only 20 MiB are free"):
        check_space(tmp_path, 2**32)
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("I/O error: No space left on device")):
        with pytest.raises(OutputError, match="no space is left"), output_errors(tmp_path / "staging"):
            raise error
    with pytest.raises(ZeroDivisionError), output_errors(tmp_path / "staging"):
        _ = 1 / 0


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_really_full_disk(tmp_path: Path) -> None:
    from basis_sharing import compress
    from pico import save_pico

    dense, disk = save_pico("llama", tmp_path / "dense"), tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=400k tmpfs {disk}"):
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OutputError, match="make room"):
            compress(dense, 0.2, windows=4, length=64, output=disk / "out")
        monkey = pytest.MonkeyPatch()
        monkey.setattr("basis_sharing.verbs.compress.check_space", lambda *_: None)
        with monkey.context(), pytest.raises(OutputError, match="no space is left"):
            compress(dense, 0.2, windows=4, length=64, output=disk / "out")
        monkey.undo()
        assert [path.name for path in disk.iterdir()] == ["out.work"]
    finally:
        os.system(f"umount {disk}")


def test_an_unwritable_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", deny)
    with (
        pytest.raises(OutputError, match="Permission denied"),
        reserve(tmp_path / "a" / "out", overwrite=False, inputs=[]),
    ):
        pass
