"""``basis-sharing study``: two files, a table, a sentence; mistakes cost no time and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from basis_sharing.cli.main import main
from basis_sharing.verbs.study import StudyResult
from pico import save_pico


class Space:
    """A model, a text, and a runner."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.model = save_pico("gpt2", root / "model")
        self.text = root / "text.txt"
        self.text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
        self.out = root / "out"
        capsys.readouterr()

    def run(self, *arguments: object, model: object = None, output: object = None) -> tuple[int, str, str]:
        """Run the verb with good defaults; return the exit code, and what was printed where."""
        words = ("study", model or self.model, "-o", output or self.out, "--length=64", "--windows=4")
        if not any(str(a).startswith("--calibration=") for a in arguments):
            words += (f"--calibration={self.text}",)
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*words, *arguments)])
        captured = self.capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    def refused(self, *arguments: object, model: object = None, output: object = None) -> str:
        code, printed, errors = self.run(*arguments, model=model, output=output)
        assert code == 2
        assert printed == ""
        assert "Traceback" not in errors
        (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert not list(self.out.glob("*") if self.out.is_dir() else [])
        return error


@pytest.fixture
def space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Space:
    return Space(tmp_path, capsys)


def test_two_files_a_table_and_a_sentence(space: Space) -> None:
    code, printed, errors = space.run("--ratio=0.35")
    assert code == 0
    assert sorted(path.name for path in space.out.iterdir()) == ["sharing.json", "sharing.png"]
    result = StudyResult.model_validate_json((space.out / "sharing.json").read_text())
    assert result.ratio == 0.35
    assert 0.35 in result.study.ratios
    assert result.calibration.windows == 4
    assert (space.out / "sharing.png").read_bytes().startswith(b"\x89PNG")
    assert "at ratio 0.35" in printed
    assert "not measured on text" in " ".join(printed.split())
    assert "comparing pairs" in errors

    kept = (space.out / "sharing.json").read_bytes()
    code, printed, errors = space.run()
    assert code == 2
    assert "--overwrite" in errors
    assert "loading" not in errors
    assert (space.out / "sharing.json").read_bytes() == kept
    code, printed, _ = space.run("--overwrite", "--json", "--no-gradients")
    assert code == 0
    shown = json.loads(printed)
    assert shown == json.loads((space.out / "sharing.json").read_text())
    assert shown["ratio"] == 0.4
    assert not shown["gradients"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--ratio=0", "out of range"),
        ("--ratio=1.5", "out of range"),
        ("--ratio=abc", "'abc' is not a number"),
        ("--windows=0", "windows"),
        ("--length=1", "length"),
        ("--seed=-1", "seed"),
        ("--dtype=int4", "dtype"),
        ("--calibration-dtype=int4", "calibration_dtype"),
        ("--calibration=nowhere.txt", "nowhere.txt"),
        ("--method=svd", "No such option"),
    ],
)
def test_bad_settings(space: Space, argument: str, sentence: str) -> None:
    assert sentence in space.refused(argument)


def test_bad_models(space: Space) -> None:
    assert "does not exist" in space.refused(model=space.root / "nowhere")
    (space.model / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors" in space.refused()


def test_folders_that_cannot_be_written_fail_before_the_work(space: Space) -> None:
    for output in (space.text, space.text / "below"):
        code, _, errors = space.run(output=output)
        assert code == 2
        assert "cannot write to" in errors
        assert "loading" not in errors
    assert space.text.read_text().startswith("The quick")


def test_help_stays_light() -> None:
    code = (
        "import sys\nfrom basis_sharing.cli.main import main\n"
        "try:\n    main(['study', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
