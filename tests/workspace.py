"""A folder with a model and a text, and a runner of the command line that checks what must always hold."""

from pathlib import Path

import pytest

from basis_sharing.cli.main import main
from pico import save_pico


class Workspace:
    """A folder with a model, a text, and a runner that checks what must always hold."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.model = save_pico("llama", root / "model")
        self.text = root / "text.txt"
        self.text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
        self.out = root / "out"

    def snapshot(self) -> list[tuple[Path, int, int]]:
        return sorted((p, p.stat().st_size, p.stat().st_mtime_ns) for p in self.root.rglob("*") if p.is_file())

    def run(self, *arguments: object) -> int:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return int(stop.value.code or 0)

    def refused(self, *arguments: object) -> str:
        before = self.snapshot()
        self.capsys.readouterr()
        assert self.run(*arguments) == 2
        captured = self.capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, captured.err
        assert lines[-1] == errors[0]
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert self.snapshot() == before
        assert not list(self.root.glob(".*"))
        return errors[0]

    def compress(self, *arguments: object, model: object = None, **options: object) -> str:
        """Run compress with good defaults, some of them replaced, and return the refusal."""
        settings: dict[str, object] = {
            "output": self.out,
            "calibration": self.text,
            "windows": 4,
            "length": 64,
            "ratio": "0.2",
        }
        settings.update(options)
        flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}={value}",)]
        message = self.refused("compress", model or self.model, *flags, *arguments)
        if settings["output"] == self.out:
            assert not self.out.exists()
        return message
