"""The page of the Python interface: complete, and every example on it runs."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import basis_sharing
from pico import TEXT, save_pico

HOOKS = Path(__file__).resolve().parents[1] / "docs" / "hooks.py"
MAKES = {"compress": ["llama-20"]}
"""What an example writes under a name that others read: it is not there before."""
ERRORS = {name for name in basis_sharing.__all__ if name.endswith("Error")}


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", HOOKS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()
EXAMPLES = {name: hooks.example(node) for name, node in hooks.definitions().items()}


@pytest.mark.parametrize("name", basis_sharing.__all__)
def test_everything_public_is_described(name: str) -> None:
    page = hooks.api_page()
    assert f"\n## {name}\n" in page
    entry = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert f"basis_sharing.{name}(" in entry
    if name not in ERRORS:
        assert "**Example**" in entry
    if name.islower():
        for part in ("**Arguments**", "**Returns**", "**Raises**"):
            assert part in entry


def test_a_signature_is_shown_with_defaults() -> None:
    entry = hooks.api_page().partition("\n## evaluate\n")[2].partition("\n## ")[0]
    assert "    model: str | Path | Any,\n    text: str | Sequence[str] | None = None,\n    *,\n" in entry
    assert "    dtype: DtypeName = 'auto',\n" in entry
    assert "\n) -> EvaluationResult\n" in entry
    assert "- `length`: Tokens per window; None: 2048, or the model's limit where that is smaller.\n" in entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    save_pico("llama", root / "llama")
    for name in ("calibration.txt", "heldout.txt"):
        (root / name).write_text(TEXT)
    basis_sharing.compress(root / "llama", 0.2, method="svd", output=root / "llama-20")
    return root


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ERRORS])
def test_examples_run(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_sharing.benchmark.turns._SECONDS_PER_REPEAT", 0.0)
    monkeypatch.setattr("basis_sharing.verbs.bench.can_measure", lambda: False)  # fresh processes take seconds
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for made in MAKES.get(name, []):
        shutil.rmtree(tmp_path / made)
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[name]
    assert code is not None
    assert "basis_sharing." in code
    exec(compile(code, f"<example of {name}>", "exec"), {"basis_sharing": basis_sharing})
    for made in MAKES.get(name, []):
        assert (tmp_path / made).exists()
