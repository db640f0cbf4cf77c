"""The walls of the house: what may import what (docs/architecture.md), and how light the front door is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "basis_sharing"
FLOORS = (
    ("errors", "runtime"),
    ("recipe", "linalg"),
    ("models",),
    ("run",),
    ("blocks", "costs"),
    ("calibration", "plans"),
    ("weightings", "results"),
    ("treatments",),
    ("repair", "checkpoint", "engines"),
    ("evaluation", "exports", "serving", "benchmark"),
    ("planning", "reports"),
    ("verbs",),
    ("cli",),
)
"""The folders of the package, bottom first; ``docs/architecture.py`` draws them."""
ABOVE_ALL = {"__init__", "__main__"}
TRAVELLING = {
    "format_basis_sharing",
    "entries_basis_sharing",
    "experts_basis_sharing",
    "expert_entries_basis_sharing",
    "kernels_basis_sharing",
    "rounded_basis_sharing",
    "config_basis_sharing",
    "factorized_basis_sharing",
    "layers_basis_sharing",
    "modeling_basis_sharing",
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


def test_imports_go_down() -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    files = [path for path in SOURCE.rglob("*.py") if part_of(path) not in ABOVE_ALL]
    assert {part_of(path) for path in files} == set(floor_of)
    wrong = {
        f"{path.relative_to(SOURCE)} imports {found}"
        for path in files
        for found in imports(path)
        if floor_of.get(found, len(FLOORS)) >= floor_of[part_of(path)]
    }
    assert not wrong


def test_the_files_that_travel_stand_alone() -> None:
    for name in TRAVELLING:
        path = SOURCE / "runtime" / f"{name}.py"
        assert imports(path) == set()
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        assert {(node.level, node.module) for node in nodes if node.level} <= {(1, other) for other in TRAVELLING}
    assert run("import sys, basis_sharing.runtime.format_basis_sharing; print('torch' in sys.modules)") == "False"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_is_light() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'rich', 'typer') if m in sys.modules]"
    assert run(f"import sys, basis_sharing; print({heavy})") == "[]"


def test_importing_the_package_is_quick() -> None:
    code = "import time; start = time.process_time(); import basis_sharing; print(time.process_time() - start)"
    assert min(float(run(code)) for _ in range(5)) < 0.02


def test_loading_a_compressed_folder_imports_only_what_it_needs() -> None:
    folder = Path(__file__).parent / "fixtures" / "0.1.0" / "auto"
    native = "from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast"
    load = (
        f"import sys\n{native}\nbefore = set(sys.modules)\nimport basis_sharing\n"
        f"AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} & "
        "{'matplotlib', 'jinja2', 'typer', 'rich', 'pydantic', 'yaml'}))\n"
        "print(sorted(name.split('.')[1] for name in sys.modules if name.startswith('basis_sharing.')))"
    )
    foreign, own = run(load).splitlines()[-2:]
    assert foreign == "[]"  # transformers itself imports jinja2
    assert set(ast.literal_eval(own)) == {"runtime"}


def test_reading_plans_and_results_imports_no_torch() -> None:
    modules = "basis_sharing.plans.plan, basis_sharing.results.compression"
    assert run(f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))") == "set()"


def test_preparing_text_imports_no_template_engine() -> None:
    modules = "{'matplotlib', 'jinja2', 'typer'} & set(sys.modules) - before"
    before = "import sys, transformers.modeling_utils; before = set(sys.modules)"
    assert run(f"{before}; import basis_sharing.calibration.windows; print({modules})") == "set()"


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
