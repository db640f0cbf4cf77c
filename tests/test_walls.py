"""The walls of the house: what may import what (docs/architecture.md), and how light the front door is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "basis_sharing"
ANYTHING_BELOW = {"durable", "errors", "machine", "progress", "ranks"}
ALLOWED = {
    "durable": set(),
    "errors": set(),
    "ranks": set(),
    "machine": {"recipe"},
    "progress": set(),
    "presets": set(),
    "_registration": set(),
    "recipe": {"presets"},
    "models": set(),
    "plan": {"models", "presets", "recipe"},
    "results": {"plan", "recipe"},
    "linalg": set(),
    "weighting": {"calibration", "linalg", "models", "presets"},
    "layers": {"linalg"},
    "calibration": {"models"},
    "planning": {"models", "plan", "recipe", "linalg", "calibration", "weighting"},
    "factorization": {"models", "plan", "linalg", "layers", "calibration", "weighting"},
    "propagation": {"calibration", "layers", "linalg", "models"},
    "checkpoint": {"layers", "models"},
    "benchmark": {"evaluation", "models", "recipe", "results"},
    "evaluation": {"models", "calibration", "checkpoint", "results"},
    "serving": {"checkpoint", "layers", "models"},
    "report": {"checkpoint", "estimate", "evaluation", "forecast", "models", "plan", "planning", "recipe", "results"},
    "work": {"checkpoint", "results"},
    "subject": {"models", "recipe", "work"},
    "calibrate": {
        "calibration",
        "evaluation",
        "models",
        "planning",
        "presets",
        "recipe",
        "results",
        "subject",
        "weighting",
        "work",
    },
    "estimate": {"calibrate", "calibration", "models", "presets", "propagation", "recipe", "subject"},
    "planners": {"calibrate", "checkpoint", "models", "plan", "planning", "recipe", "subject", "weighting", "work"},
    "targets": {
        "calibration",
        "evaluation",
        "factorization",
        "layers",
        "models",
        "plan",
        "planning",
        "recipe",
        "results",
        "subject",
        "weighting",
    },
    "forecast": {
        "calibrate",
        "estimate",
        "evaluation",
        "linalg",
        "models",
        "plan",
        "planners",
        "planning",
        "presets",
        "recipe",
        "subject",
        "targets",
        "weighting",
    },
    "rollout": {
        "benchmark",
        "calibration",
        "checkpoint",
        "evaluation",
        "models",
        "pipeline",
        "recipe",
        "results",
    },
    "recovery": {
        "calibration",
        "checkpoint",
        "evaluation",
        "layers",
        "models",
        "propagation",
        "results",
        "work",
    },
    "studying": {"calibrate", "estimate", "planning", "recipe", "results", "subject"},
    "pipeline": {
        "calibration",
        "checkpoint",
        "evaluation",
        "factorization",
        "layers",
        "models",
        "calibrate",
        "estimate",
        "plan",
        "planners",
        "presets",
        "propagation",
        "recipe",
        "results",
        "subject",
        "targets",
        "weighting",
        "work",
    },
}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the parts of the package a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "basis_sharing":
                names = [f"basis_sharing.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("basis_sharing.")}
    return found - {part_of(path)}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_respect_the_walls(path: Path) -> None:
    part = part_of(path)
    found = imports(path)
    if part in {"__init__", "__main__", "cli"}:
        return
    assert "cli" not in found, "nothing imports the command line"
    assert found <= ALLOWED[part] | ANYTHING_BELOW, f"{part} must not import {sorted(found - ALLOWED[part])}"


def test_every_part_has_walls() -> None:
    parts = {part_of(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__", "cli"}
    assert parts == set(ALLOWED)


def test_the_file_that_travels_stands_alone() -> None:
    assert imports(SOURCE / "layers" / "modeling_basis_sharing.py") == set()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_is_light() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'rich', 'typer') if m in sys.modules]"
    assert run(f"import sys, basis_sharing; print({heavy})") == "[]"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom basis_sharing.cli.main import main\n"
        "try:\n    main(['compress', '--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    assert run(code).endswith("False")


@pytest.mark.parametrize("first", ["basis_sharing", "transformers.quantizers.auto"])
def test_the_quantizer_is_registered_whatever_is_imported_first(first: str) -> None:
    code = (
        f"import {first}\nimport basis_sharing\nfrom transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "print('basis_sharing' in AUTO_QUANTIZER_MAPPING)"
    )
    assert run(code) == "True"
