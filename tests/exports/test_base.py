"""The registry of exports."""

from pathlib import Path

import pytest

import basis_sharing.exports
from basis_sharing.errors import RecipeError
from basis_sharing.exports import base

NEW = """
from basis_sharing.exports.base import register


class New:
    name = "new"
    summary = "a file that registers itself"

    def write(self, folder, staging, progress):
        (staging / "new.txt").write_text(folder.name)


register(New())
"""


class Twin:
    name = "dense"
    summary = "another one of this name"

    def write(self, *_: object) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_registered", base.exports())


def test_a_new_export_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_only_new.py").write_text(NEW)
    monkeypatch.setattr(basis_sharing.exports, "__path__", [*basis_sharing.exports.__path__, str(tmp_path)])
    assert list(base.exports()) == ["dense", "new"]
    base.find_export("new").write(Path("model"), tmp_path, lambda _: None)
    assert (tmp_path / "new.txt").read_text() == "model"


def test_two_of_one_name_are_refused() -> None:
    sentence = r"two exports are called 'dense': basis_sharing.exports.dense.Dense and .*Twin; rename one of them"
    with pytest.raises(ValueError, match=sentence):
        base.register(Twin())


def test_unknown_names() -> None:
    with pytest.raises(RecipeError, match="unknown export 'gguf': choose from dense"):
        base.find_export("gguf")
