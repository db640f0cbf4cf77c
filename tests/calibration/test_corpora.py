"""Sources of text: what can be named, what is read, and what is refused."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from basis_sharing.calibration.corpora import Source, parse_source, read_text, wikitext_rows
from basis_sharing.errors import CorpusError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")

WIKITEXT = " \n = Title = \n \n Some text , with 1 @,@ 000 words . \n More . \n \n"
ROWS = ["", " = Title = \n", "", " Some text , with 1 @,@ 000 words . \n", " More . \n", ""]


def write(path: Path, content: str | bytes, *, zipped: bool = False) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    return path


def read(spec: object) -> str:
    return read_text(parse_source(str(spec)), "train")


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# What can be named


@pytest.mark.parametrize("name", ["python-docs", "python-docs:heldout", "wikitext2", "wikitext2-rows", "c4", "self"])
def test_names_without_a_file(name: str) -> None:
    assert parse_source(name) == Source(name, None, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["wikitext2", "wikitext2-rows", "c4", "chat", "text", "windows"])
def test_prefix_decides_whatever_the_suffix(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.odd", "text")
    assert parse_source(f"{kind}:{path}") == Source(kind, path, f"{kind}:{path}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(f"a{suffix}", "text") for suffix in (".txt", ".raw", ".md", ".tokens", ".utf8", ".jsonl", ".json", ".TXT")],
        ("a.txt.gz", "text"),
        ("a.jsonl.gz", "text"),
        ("a.npz", "windows"),
        ("a.safetensors", "windows"),
    ],
)
def test_suffix_decides_without_a_prefix(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / name, "text")
    assert parse_source(str(path)).kind == kind


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "text")
    assert parse_source("~/a.txt").path == tmp_path / "a.txt"
    assert parse_source("wikitext2:~/a.txt").path == tmp_path / "a.txt"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("wikitext", "did you mean 'wikitext2'"),
        ("slef", "did you mean 'self'"),
        ("wikitxt2:a.raw", "did you mean 'wikitext2:a.raw'"),
        ("python-docs:held", "did you mean 'python-docs:heldout'"),
        ("three words here", "or one of python-docs"),
        ("", "or one of python-docs"),
        ("x" * 5000, "or one of python-docs"),
        ("chat:", "write chat:FILE"),
        ("missing.txt", "there is no file missing.txt"),
        (
            "some/where",
            "there is no file some/where: check the path, or write hub:some/where for a data set of the hub",
        ),
        ("some/where.txt", "there is no file some/where.txt: check the path."),
        ("a.txt + b.txt", "is several texts, but here one is read at a time"),
        ("C:\\texts\\a.txt", "there is no file"),
        ("wikitext2:missing.raw", "there is no file missing.raw"),
    ],
)
def test_unknown_sources_are_refused(spec: str, says: str) -> None:
    with pytest.raises(CorpusError) as caught:
        parse_source(spec)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["windows", "wikitext2", "wikitext2-rows"])
def test_folders_are_refused_where_one_file_is_needed(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CorpusError, match="is a folder: give one file in it"):
        parse_source(f"{kind}:{tmp_path}")


def test_unknown_suffix_asks_for_a_prefix(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rst", "text")
    with pytest.raises(CorpusError, match=f"write text:{path}"):
        parse_source(str(path))
    assert read(f"text:{path}") == "text"


def test_parsing_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, basis_sharing.calibration.corpora as c; c.parse_source('self'); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" not in modules
    assert "'transformers'" not in modules


# Text files


@pytest.mark.parametrize("zipped", [False, True])
def test_text_is_read_exactly(tmp_path: Path, zipped: bool) -> None:
    text = "\n A — line \r\n\n\n and more\u2028 \n"
    assert read(write(tmp_path / "a.txt", text, zipped=zipped)) == text  # gzip is recognised by its first bytes


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfabc")) == "abc"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"abc\xff\xfe", "not UTF-8 text (byte 0xff at offset 3)"),
        (gzip.compress(b"abc" * 1000, mtime=0)[:-12], "damaged gzip"),
        (gzip.compress(b"abc" * 1000, mtime=0)[:12] + b"garbage" * 9, "damaged gzip"),
        (b"\x1f\x8bxxxxxxxxxx", "damaged gzip"),
    ],
)
def test_bad_text_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(CorpusError) as caught:
        read(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


# WikiText-2


def test_wikitext_is_the_published_text(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki.train.raw", WIKITEXT)
    assert read(f"wikitext2:{path}") == WIKITEXT


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_wikitext_rows_are_rebuilt(tmp_path: Path, line_end: str) -> None:
    path = write(tmp_path / "wiki.train.raw", WIKITEXT.replace("\n", line_end))
    assert wikitext_rows(path.read_bytes().decode()) == ROWS
    assert read(f"wikitext2-rows:{path}") == "\n\n".join(ROWS)


def test_hub_wikitext_equals_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: str, split: str) -> dict[str, list[str]]:
        asked.append((*args, split))
        return {"text": ROWS}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_text(parse_source("wikitext2"), "train") == WIKITEXT
    assert read_text(parse_source("wikitext2-rows"), "test") == "\n\n".join(ROWS)
    name = ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert asked == [(*name, "train"), (*name, "test")]


def test_hub_c4_takes_the_first_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, *, data_files: dict[str, str], split: str, streaming: bool) -> Any:
        assert (name, streaming) == ("allenai/c4", True)
        return ({"text": f"{data_files[split].split('.')[0]} {i}"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    documents = read_text(parse_source("c4"), "test").split("\n\n")
    assert (len(documents), documents[0]) == (1100, "en/c4-validation 0")
    assert read_text(parse_source("c4"), "train").startswith("en/c4-train 0\n\nen/c4-train 1\n\n")


@pytest.mark.parametrize("name", ["wikitext2", "wikitext2-rows", "c4"])
def test_hub_without_package_or_network(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    for module in (None, SimpleNamespace(load_dataset=load_dataset)):
        monkeypatch.setitem(sys.modules, "datasets", module)
        with pytest.raises(CorpusError) as caught:
            read(name)
        message = str(caught.value)
        assert "basis-sharing[hub]" in message
        assert f"{name}:FILE" in message
        assert "\n" not in message


# JSON records

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        jsonl({"text": "a\u2028b"}, {"text": "c"}),
        "\n" + jsonl({"text": "a\u2028b"}) + "\n \n" + jsonl({"text": "c"}),
        json.dumps([{"text": "a\u2028b"}, {"text": "c"}], indent=2, ensure_ascii=False),
        '{"text": "a\u2028b"}\r\n{"text": "c"}',
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_records_are_recognised_by_content(tmp_path: Path, name: str, content: str, zipped: bool) -> None:
    path = write(tmp_path / name, content, zipped=zipped)
    assert read(path) == read(f"c4:{path}") == read(f"text:{path}") == "a\u2028b\n\nc"


def test_c4_may_be_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c4.utf8", "One.\nTwo.\n")
    assert read(f"c4:{path}") == "One.\nTwo.\n"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a", "url": "b"}, "a"),
        ({"instruction": "a", "input": "", "output": "c"}, "a\n\nc"),
        ({"instruction": "a", "input": "b", "output": "c"}, "a\n\nb\n\nc"),
        ({"instruction": "a", "output": "c"}, "a\n\nc"),
        ({"messages": CHAT}, "Hello?\n\nHi."),
        ({"conversations": CHAT}, "Hello?\n\nHi."),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a\n\nb"),
    ],
)
def test_record_shapes(tmp_path: Path, record: object, text: str) -> None:
    assert read(write(tmp_path / "a.jsonl", jsonl(record))) == text


def test_half_characters_are_replaced(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", '{"text": "a\\ud83d"}')) == "a?"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": ', "line 1 of"),
        ("{text: 1}\n\n{text: 1}", "line 1 of"),
        ('[{"text": },\n {"text": "a"}]', "line 1 of"),
        ('[{"text": "a"},\n {"text": }, {"text": "and more"}]', "line 2 of"),
        (json.dumps({"data": [1]}, indent=1), "has the fields data"),
        ('{"a": 1', "one record per line, or one list of records"),
        (jsonl({"house": "a", "street": "b"}), "has the fields house, street"),
        (jsonl({"instruction": "a"}), "has the fields instruction"),
        (jsonl({"text": None}), "field 'text' of line 1"),
        (jsonl({"text": ["a"]}), "is list instead of a string"),
        (jsonl({"messages": "a"}), "is not a list of messages"),
        (jsonl({"messages": []}), "is not a list of messages"),
        (jsonl({"messages": [{"role": "user"}]}), "field 'content' of a message in line 1"),
        (jsonl(["a"]), "record 1 of"),
        (jsonl("a"), "is not a JSON object"),
        (jsonl({}), "has no fields"),
        ("[]", "are empty"),
        (jsonl({"text": " "}, {"text": ""}), "are empty"),
        ("", "is empty"),
    ],
)
def test_bad_records(tmp_path: Path, content: str, says: str) -> None:
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(CorpusError) as caught:
        read(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


# Python's documentation


def test_python_docs_parts_do_not_overlap() -> None:
    part, heldout = read("python-docs"), read("python-docs:heldout")

    def paragraphs(text: str) -> list[str]:
        normal = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return [paragraph for paragraph in normal if len(paragraph) >= 80]

    assert not set(paragraphs(part)) & set(paragraphs(heldout))
    assert len(part) > 250_000
    assert 40_000 < len(heldout) < 0.25 * len(part)
    assert len(set(paragraphs(part))) > 0.95 * len(paragraphs(part))  # chapters do not come twice


def test_python_docs_do_not_depend_on_the_process() -> None:
    code = (
        "from basis_sharing.calibration.corpora import *; print(hash('a'), "
        "__import__('zlib').crc32(read_text(parse_source('python-docs'), 'train').encode()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert runs[0][0] != runs[1][0]
    assert runs[0][1] == runs[1][1]


# Real data


@needs_data
def test_real_wikitext_rows() -> None:
    text = read(f"wikitext2:{DATA}/wikitext2/wiki.test.raw")
    rows = wikitext_rows(text)
    assert len(text.encode()) == 1_290_590
    assert len(rows) == 4358
    assert "".join(row or " \n" for row in rows) == text
    assert read(f"wikitext2-rows:{DATA}/wikitext2/wiki.test.raw") == "\n\n".join(rows)


@needs_data
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("c4/c4_demo.jsonl.gz", 700_000),
        ("c4/c4-sample.jsonl", 50_000),
        ("c4/c4_100_domains_theguardian.val.jsonl", 10_000),
        ("c4/exllamav3_c4.utf8.gz", 1_000_000),
        ("calibration/alpaca_random_9k.json.gz", 3_000_000),
        ("calibration/tinyshakespeare.txt.gz", 1_000_000),
        ("wikitext2/wiki.valid.tokens.gz", 1_000_000),
    ],
)
def test_real_files(name: str, least: int) -> None:
    assert len(read(DATA / name)) > least
