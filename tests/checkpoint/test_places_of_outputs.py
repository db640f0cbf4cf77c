"""Where an output can be is known before the work, and every file that is written can be read by others."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from basis_sharing import compress, evaluate, export
from basis_sharing.checkpoint.writer import check_space, publish, reserve, shutil
from basis_sharing.errors import OutputError
from basis_sharing.run.durable import finish, write_whole
from basis_sharing.run.files import check_files
from basis_sharing.run.work import WorkFolder, work_beside
from pico import save_with_texts

LONG = "x" * 240


def refused(out: Path, words: str, *, inputs: tuple[Path, ...] = ()) -> None:
    with pytest.raises(OutputError, match=words), reserve(out, overwrite=True, inputs=inputs):
        pass


def test_a_link_stays_and_what_it_names_becomes_the_output(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/real")
    for content in ("first", "second"):
        with reserve(tmp_path / "link", overwrite=True, inputs=[]) as staging:
            assert staging.parent == tmp_path / "disk"  # beside what is renamed, on the same disk
            (staging / "config.json").write_text(content)
            publish(staging, tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk/real/config.json").read_text() == content
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "real", "config.json", "link"}
    assert work_beside(tmp_path / "link") == tmp_path / "disk/real.work"


def test_places_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dangling").symlink_to("gone")
    refused(tmp_path / "dangling", "is a link to gone, which is not there")
    refused(tmp_path / LONG, "is too long")
    refused(tmp_path / ("y" * 300) / "out", "File name too long")
    refused(Path("/proc"), "is where a disk is mounted")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(Path(), "is where this command runs")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "out", "cannot write|failed")
    assert {path.name for path in tmp_path.rglob("*")} == {"dangling", "here", "file"}


def test_an_output_is_not_inside_an_input_nor_around_the_work(tmp_path: Path) -> None:
    root = save_with_texts(tmp_path)
    refused(root / "model" / "small", "is inside the input", inputs=(root / "model",))
    settings = {"calibration": str(root / "text.txt"), "windows": 4, "length": 64}
    for output, work in ((root / "out", root / "out" / "work"), (root / "kept" / "out", root / "kept")):
        with pytest.raises(OutputError, match=r"is, or contains, the input|is inside the input"):
            compress(root / "model", 0.2, output=output, work=work, **settings)
        assert not (root / "out").exists()
        assert not (root / "kept").exists()


def test_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "dangling.json").symlink_to("gone.json")
    for path, words in (
        (tmp_path / f"{LONG}.json", "is too long"),
        (tmp_path / ("y" * 300) / "a.json", "File name too long"),
        (tmp_path / "dangling.json", "which is not there"),
    ):
        with pytest.raises(OutputError, match=words):
            check_files([path], overwrite=True)
    with pytest.raises(OutputError, match="File name too long"):
        WorkFolder(tmp_path / ("y" * 300), "model", "float32")


@pytest.mark.parametrize("short_by", [1, 2**19, 2**20, 2**30])
def test_a_full_disk_is_never_said_to_have_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_by: int
) -> None:
    for free in (20 * 2**20, 20 * 2**20 + 5):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        check_space(tmp_path, free - 16 * 2**20)
        with pytest.raises(OutputError) as caught:
            check_space(tmp_path, free - 16 * 2**20 + short_by)
        words = str(caught.value).replace(",", "").split()
        assert int(words[0]) > int(words[words.index("only") + 1])


# --- modes


@pytest.mark.parametrize("mask", [0o027])
def test_every_written_file_has_the_mode_of_new_files(tmp_path: Path, mask: int) -> None:
    root = save_with_texts(tmp_path)
    before, texts = os.umask(mask), {"windows": 4, "length": 64}
    try:
        settings = {"calibration": str(root / "text.txt"), **texts}
        compress(root / "model", 0.2, output=root / "small", work=root / "work", method="svd-llm", **settings)
        export(root / "small", root / "dense")
        evaluate(root / "small", str(root / "other.txt"), length=64).write(root / "result.json")
        write_whole(root / "one.safetensors", lambda path: save_file({"a": torch.zeros(1)}, path))
    finally:
        os.umask(before)
    written = [root / "result.json", root / "one.safetensors"]
    written += [path for name in ("small", "dense", "work") for path in (root / name).rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".safetensors", ".json", ".py", ".md"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in written} == {oct(0o666 & ~mask)}
    folders = [root / "small", root / "dense", root / "work"]
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in folders} == {oct(0o777 & ~mask)}
    assert os.umask(before) == before


def test_finishing_leaves_folders_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    finish(tmp_path / "private")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    (tmp_path / "a.json").write_text(json.dumps({}))
    (tmp_path / "a.json").chmod(0o600)
    finish(tmp_path / "a.json")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~_mask()


def _mask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
