"""The registry of exports."""

from pathlib import Path

import pytest

import basis_sharing.exports
from basis_sharing.errors import RecipeError
from basis_sharing.exports import base
from basis_sharing.run.registry import Registry

NEW = """
from basis_sharing.exports.base import register


class New:
    name = "new"
    summary = "a file that registers itself"
    weights = ()
    takes_dense = False

    def write(self, folder, staging, weights, progress):
        (staging / "new.txt").write_text(folder.name)


register(New())
"""


class Twin:
    name = "dense"
    summary = "another one of this name"
    weights: tuple[str, ...] = ()
    takes_dense = False

    def write(self, folder: Path, staging: Path, weights: str | None, progress: object) -> None:
        """Write nothing."""


def test_a_new_file_of_the_folder_is_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dense" in base.EXPORTS  # imported, and in the registry of the other tests
    (tmp_path / "test_only_new.py").write_text(NEW)
    monkeypatch.setattr(basis_sharing.exports, "__path__", [*basis_sharing.exports.__path__, str(tmp_path)])
    monkeypatch.setattr(base, "EXPORTS", Registry("export", "basis_sharing.exports"))
    assert "new" in base.EXPORTS
    base.EXPORTS["new"].write(Path("model"), tmp_path, None, lambda _: None)
    assert (tmp_path / "new.txt").read_text() == "model"


def test_two_exports_of_one_name_are_refused() -> None:
    assert "dense" in base.EXPORTS
    with pytest.raises(RecipeError, match=r"two exports are called 'dense' \(.*Dense and .*Twin\): rename one"):
        base.register(Twin())


def test_an_unknown_export_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"unknown export 'paper': choose from .*dense"):
        base.EXPORTS["paper"]
