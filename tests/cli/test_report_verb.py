"""``basis-sharing report``: one file, and every mistake in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from basis_sharing import compress
from basis_sharing.cli.main import main
from pico import save_pico


class Space:
    """A compressed model, and a runner."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.model = save_pico("llama", root / "model")
        self.small = root / "small"
        compress(self.model, 0.2, method="svd", output=self.small)
        self.page = root / "pages" / "report.html"

    def run(self, *words: object) -> tuple[int, str, str]:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["report", *(str(word) for word in words), "-o", str(self.page)])
        captured = self.capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    def refused(self, *words: object) -> str:
        before = sorted((path, path.stat().st_mtime_ns) for path in self.root.rglob("*"))
        code, printed, errors = self.run(*words)
        assert code == 2
        assert printed == ""
        assert "Traceback" not in errors
        assert sorted((path, path.stat().st_mtime_ns) for path in self.root.rglob("*")) == before
        (line,) = errors.splitlines()
        return line


@pytest.fixture
def space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Space:
    return Space(tmp_path, capsys)


def test_a_page_and_its_pictures(space: Space) -> None:
    code, printed, _ = space.run(space.small, "--figures", space.root / "figures")
    assert code == 0
    assert f"written to {space.page} and 4 pictures to {space.root / 'figures'}" in printed
    assert space.page.read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in (space.root / "figures").iterdir()) == [
        "ranks.png",
        "ranks.svg",
        "sizes.png",
        "sizes.svg",
    ]
    assert f"error: {space.page} exists: choose another name, or pass --overwrite." == space.refused(space.small)
    assert space.run(space.small, "--overwrite")[0] == 0


def test_folders_that_are_not_compressed(space: Space) -> None:
    nowhere = space.root / "nowhere"
    give = "give the folder that `basis-sharing compress` wrote."
    assert space.refused(nowhere) == f"error: {nowhere} does not exist: {give}"
    file = space.small / "config.json"
    assert space.refused(file) == f"error: {file} is a file: {give}"
    assert space.refused(space.model) == (
        f"error: {space.model} holds no basis_sharing.json: give a folder that `basis-sharing compress` wrote, not the "
        "original."
    )


def test_damaged_and_newer_results(space: Space) -> None:
    file = space.small / "basis_sharing.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"schema_version": 99}))
    assert space.refused(space.small) == (
        f"error: {file} has schema version 99, and this version of basis-sharing reads up to 2: update basis-sharing."
    )
    file.write_text(json.dumps(data | {"entries": "none"}))
    assert space.refused(space.small) == (
        f"error: {file} is damaged (entries: input should be a valid tuple): make it again."
    )
    file.write_text("{")
    assert space.refused(space.small) == f"error: {file} is not valid JSON: make it again."
    file.write_text(json.dumps(data))
    (space.small / "config.json").unlink()
    assert space.refused(space.small) == (
        f"error: {space.small / 'config.json'} is missing or damaged: compress again."
    )


def test_files_of_results_that_cannot_be_used(space: Space) -> None:
    missing = space.root / "missing.json"
    assert space.refused(space.small, "--results", missing) == (
        f"error: the results {missing} cannot be read (No such file or directory): check the path."
    )
    other = space.root / "other.json"
    other.write_text('{"kind": "weather", "schema_version": 1}')
    assert space.refused(space.small, "--results", other) == (
        f"error: {other} holds the results of a weather; a report shows those of: comparison, benchmark, "
        "evaluation, tasks, compression, rollout."
    )
    other.write_text('{"kind": "comparison", "schema_version": 9}')
    assert "has schema version 9" in space.refused(space.small, "--results", other)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom basis_sharing.cli.main import main\n"
        "try:\n    main(['report', '--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
