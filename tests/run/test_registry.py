"""Registries: what lies in a folder is found, and a name belongs to one thing."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from basis_sharing.costs.base import COSTS
from basis_sharing.errors import RecipeError
from basis_sharing.run.registry import Registry
from basis_sharing.treatments.base import TREATMENTS
from basis_sharing.weightings.base import WEIGHTINGS

SOURCE = Path(sys.modules["basis_sharing"].__file__ or "").parent


class One:
    pass


class Other:
    pass


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of shapes: its modules and its one package register something, but for the base."""
    name = "shapes_of_a_test"
    folder = tmp_path / name
    (folder / "round").mkdir(parents=True)
    base = "from basis_sharing.run.registry import Registry\nSHAPES = Registry('shape', 'shapes_of_a_test')\n"
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text(base)
    for path in ("square.py", "zigzag.py", "round/__init__.py"):
        shape = path.split(".")[0].split("/")[0]
        code = f"from {name}.base import SHAPES\n\nclass Shape:\n    pass\n\nSHAPES.register({shape!r}, Shape)\n"
        (folder / path).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_all_files_and_folders_of_a_package_are_found_when_it_is_first_asked(package: str) -> None:
    registry: Registry[Any] = importlib.import_module(f"{package}.base").SHAPES
    assert f"{package}.square" not in sys.modules
    assert list(registry) == ["round", "square", "zigzag"]
    assert len(registry) == 3
    assert "square" in registry
    assert "triangle" not in registry
    assert registry["zigzag"].__module__ == f"{package}.zigzag"


@pytest.mark.parametrize(
    ("registry", "folder"), [(COSTS, "costs"), (WEIGHTINGS, "weightings"), (TREATMENTS, "treatments")]
)
def test_every_file_of_our_folders_is_imported(registry: Registry[Any], folder: str) -> None:
    assert len(registry) >= 1
    files = [path.stem for path in (SOURCE / folder).glob("*.py") if path.stem != "__init__"]
    packages = [path.parent.name for path in (SOURCE / folder).glob("*/__init__.py")]
    assert {f"basis_sharing.{folder}.{name}" for name in (*files, *packages)} <= set(sys.modules)
    modules = {getattr(item, "__module__", type(item).__module__) for item in registry.values()}
    used = {name.split(".")[2] for name in modules if name.startswith("basis_sharing.")}  # others register theirs
    defining = {path.stem for path in (SOURCE / folder).glob("*.py") if "@register\n" in path.read_text()}
    assert defining | set(packages) == used


def test_two_things_of_one_name_are_refused_in_one_sentence() -> None:
    registry: Registry[type] = Registry("cost", "basis_sharing.costs")
    assert registry.register("a", One) is One
    assert registry.register("a", One) is One
    with pytest.raises(RecipeError) as caught:
        registry.register("a", Other)
    sentence = str(caught.value)
    assert sentence == (
        f"two costs are called 'a' ({__name__}.One and {__name__}.Other): rename one, or do not import it."
    )
    assert registry._registered["a"] is One


def test_instances_are_told_apart_by_their_classes() -> None:
    registry: Registry[object] = Registry("treatment", "basis_sharing.costs")
    first = registry.register("a", One())
    assert registry.register("a", One()) is not first
    assert registry._registered["a"] is first
    with pytest.raises(RecipeError, match="two treatments are called 'a'"):
        registry.register("a", Other())


@pytest.mark.parametrize(("registry", "what"), [(COSTS, "cost"), (WEIGHTINGS, "weighting"), (TREATMENTS, "treatment")])
def test_an_unknown_name_is_refused_with_those_there_are(registry: Registry[Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        registry["magic"]
    assert str(caught.value) == f"unknown {what} 'magic': choose from {', '.join(registry)}."


def test_other_packages_are_asked_once(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    registry: Registry[type] = Registry("shape", package, "a group of entry points")

    def entry_points(group: str) -> list[Any]:
        asked.append(group)
        return [SimpleNamespace(load=lambda: registry.register("from elsewhere", One))]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert registry["from elsewhere"] is One
    assert "from elsewhere" in registry
    assert asked == ["a group of entry points"]
