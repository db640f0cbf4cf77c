"""Data sets: names with a configuration, a split and a column; folders of that form; a hub that cannot be reached."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from basis_sharing.calibration import data_sets
from basis_sharing.calibration.corpora import parse_mixture, parse_source, read_conversations, read_text
from basis_sharing.calibration.data_sets import DataSet
from basis_sharing.errors import CorpusError

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


class Rows:
    """What ``load_dataset`` returns, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows([{name: row[name] for name in names} for row in self.rows])

    def __iter__(self) -> Any:
        return iter(self.rows)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Replace the library; return what it is asked for."""
    calls: list[tuple[object, ...]] = []
    rows = [{"text": "a", "body": "x", "messages": CHAT}, {"text": None, "body": "y", "messages": None}]

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Rows:
        calls.append((name, config, split, streaming))
        if split == "missing":
            raise ValueError("Bad split: missing. Available splits: ['train']\nmore")
        return Rows([*rows, rows[0]])

    config = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, config=config))
    return calls


@pytest.mark.parametrize(
    ("spec", "data_set", "column"),
    [
        ("hub:imdb", DataSet("imdb"), None),
        ("hub:a/b", DataSet("a/b"), None),
        ("hub:a/b@validation", DataSet("a/b", None, "validation"), None),
        ("hub:a/b:en#body", DataSet("a/b", "en"), "body"),
        ("text:hub:a/b:en@train[:10]#body", DataSet("a/b", "en", "train[:10]"), "body"),
    ],
)
@pytest.mark.usefixtures("asked")
def test_names_of_data_sets(spec: str, data_set: DataSet, column: str | None) -> None:
    source = parse_source(spec)
    assert (source.kind, source.path, source.data_set, source.column) == ("text", None, data_set, column)
    assert [part.kind for part in parse_mixture(f"{spec} + chat:{spec.removeprefix('text:')}")] == ["text", "chat"]


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b/c", "hub:a b", "hub:a/b@", "hub:a/b#", "hub:a/b:", "hub:../x/y"])
@pytest.mark.usefixtures("asked")
def test_other_names_are_refused(spec: str) -> None:
    with pytest.raises(CorpusError, match=r"does not name a data set: write hub:NAME\[:CONFIG\]\[@SPLIT\]\[#COLUMN\]"):
        parse_source(spec)


def test_rows_are_records(asked: list[tuple[object, ...]]) -> None:
    notes: list[str] = []
    assert read_text(parse_source("hub:a/b:en"), "test", notes) == "a\n\na"
    assert notes == ["1 of the 3 records of hub:a/b:en is left out; field 'text' of row 2 of a/b@test is missing."]
    assert read_text(parse_source("hub:a/b@train[:3]#body"), "test") == "x\n\ny\n\nx"
    chats = read_conversations(parse_source("chat:hub:a/b"), "train", lambda chat, _: chat.messages[1]["content"], [])
    assert chats == "Hi.Hi."
    assert asked == [("a/b", "en", "test", True), ("a/b", None, "train[:3]", False), ("a/b", None, "train", True)]


def test_the_first_rows_of_many(asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sets, "_MOST_ROWS", 2)
    notes: list[str] = []
    assert read_text(parse_source("hub:a/b#body"), "train", notes) == "x\n\ny"
    assert notes == ["of a/b@train the first 2 rows are read."]


@pytest.mark.usefixtures("asked")
def test_what_a_data_set_lacks_is_named() -> None:
    with pytest.raises(CorpusError, match="a/b@train has no column 'title': name one of text, body, messages"):
        read_text(parse_source("hub:a/b#title"), "train")
    with pytest.raises(CorpusError, match=r"\(Bad split: missing. Available splits: \['train'\]\): check the network"):
        read_text(parse_source("hub:a/b@missing"), "train")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"not installed: install the extra \(pip install 'basis-sharing\[hub\]'\)"):
        parse_source("hub:a/b")


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "a@b"
    folder.mkdir()
    for split, text in (("train", "first"), ("test", "second")):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": text, "body": f"{text} body"}) + "\n")
    source = parse_source(f"hub:{folder}")
    assert source.path == folder
    assert read_text(source, "train") == "first"
    assert read_text(source, "test") == "second"
    assert read_text(parse_source(f"hub:{folder}@train#body"), "test") == "first body"
    with pytest.raises(CorpusError, match=r"Available splits: .*: check the name, the configuration and the split"):
        read_text(parse_source(f"hub:{folder}@dev"), "train")
    saved = datasets.Dataset.from_list([{"text": "saved"}])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "two")
    assert read_text(parse_source(f"hub:{tmp_path / 'one'}"), "train") == "saved"
    assert read_text(parse_source(f"hub:{tmp_path / 'two'}"), "test") == "saved"
    with pytest.raises(CorpusError, match="is a data set that was saved as a folder: write hub:"):
        parse_source(str(tmp_path / "one"))
