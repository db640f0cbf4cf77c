"""Records and tables: formats, columns, and odd ones, which are counted and named instead of ending the run."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from basis_sharing.calibration.corpora import parse_mixture, parse_source, read_text
from basis_sharing.errors import CorpusError

GOOD = {"text": "a good one"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(spec: object, notes: list[str] | None = None) -> str:
    return read_text(parse_source(str(spec)), "train", notes)


def refused(spec: object) -> str:
    with pytest.raises(CorpusError) as caught:
        read(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet_bytes(rows: list[dict[str, object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def csv_text(*rows: tuple[str, ...], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    return buffer.getvalue()


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson", jsonl({"text": "a"}, {"text": "b"})),
        ("a.jsonl", jsonl({"content": "a"}, {"content": "b"})),
        ("a.json", json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}, indent=1)),
        ("a.json", json.dumps({"text": "a"}, indent=1) + "\n" + json.dumps({"text": "b"}, indent=1)),
        ("a.json", json.dumps([{"text": "a"}, {"text": "b"}])),
        ("a.jsonl", jsonl({"prompt": "a\n", "completion": "\nb"})),
        ("a.csv", csv_text(("id", "text"), ("1", "a"), ("2", "b"))),
        ("a.csv", csv_text(("id", "text"), ("1", "a"), ("2", "b"), delimiter=";")),
        ("a.tsv", csv_text(("id", "text"), ("1", "a"), ("2", "b"), delimiter="\t")),
        ("a.csv", "\ufefftext\r\na\r\n\r\nb\r\n"),
        ("a.parquet", parquet_bytes([{"text": "a", "id": 1}, {"text": "b", "id": 2}])),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_formats(tmp_path: Path, name: str, content: str | bytes, compress: object) -> None:
    raw = content.encode() if isinstance(content, str) else content
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}.get(compress, "")  # type: ignore[call-overload]
    notes: list[str] = []
    assert read(write(tmp_path / f"{name}{suffix}", compress(raw)), notes) == "a\n\nb"  # type: ignore[operator]
    assert notes == []


def test_parquet_is_known_by_its_content_too(tmp_path: Path) -> None:
    path = write(tmp_path / "data", parquet_bytes([{"messages": [{"role": "user", "content": "a", "name": None}]}]))
    assert read(f"text:{path}") == "a"


def test_cells_may_be_long_and_of_several_lines(tmp_path: Path) -> None:
    long = 'a "quoted", word\n' * 20_000
    assert read(write(tmp_path / "a.csv", csv_text(("text",), (long,), ("b",)))) == f"{long}\n\nb"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl({"body": "a", "text": "x"}, {"body": "b", "text": "x"})),
        ("a.csv", csv_text(("body", "text"), ("a", "x"), ("b", "x"))),
        ("a.parquet", parquet_bytes([{"body": "a", "text": "x"}, {"body": "b", "text": "x"}])),
        ("a#b.jsonl", jsonl({"body": "a"}, {"body": "b"})),
    ],
)
def test_a_column_can_be_named(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = write(tmp_path / name, content)
    for spec in (f"{path}#body", f"text:{path}#body"):
        assert read(spec) == "a\n\nb"
        assert parse_source(spec).path == path
    assert "has no column 'title': name one of body" in refused(f"{path}#title")
    assert "lacks a column after #" in refused(f"{path}#")


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    assert f"{path} is plain text, which has no column 'body': leave out #body" in refused(f"{path}#body")


def test_a_table_without_a_known_column_says_which_there_are(tmp_path: Path) -> None:
    names = [f"column {i}" for i in range(20)]
    for path in (
        write(tmp_path / "a.csv", csv_text(tuple(names), tuple("x" * 20))),
        write(tmp_path / "a.parquet", parquet_bytes([dict.fromkeys(names, "x")])),
    ):
        assert "has the fields column 0, column 1, " in refused(path)
        assert "column 11 and 8 more: a record needs text" in refused(path)
        assert "or name the field with FILE#FIELD" in refused(path)


# Odd records


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ('{"text": ', "line 2 of {path} is not valid JSON (Expecting value, column 10)"),
        ('{"text": "cut off', "line 2 of {path} is not valid JSON"),
        ("{text: 1}", "line 2 of {path} is not valid JSON"),
        ("[" * 100_000, "line 2 of {path} is not valid JSON (nested too deep)"),
        ('{"text": ' + "1" * 5000 + "}", "line 2 of {path} is not valid JSON (Exceeds the limit"),
        ('{"text": null}', "field 'text' of line 2 of {path} is missing"),
        ('{"text": 5}', "field 'text' of line 2 of {path} is int instead of a string"),
        ("{}", "line 2 of {path} has no fields"),
        ('{"\\ud83d": 1}', "line 2 of {path} has the fields ?"),
        ("[1]", "line 2 of {path} is not a JSON object"),
        ("5", "line 2 of {path} is not a JSON object"),
        ('"text"', "line 2 of {path} is not a JSON object"),
    ],
)
def test_one_odd_record_is_left_out_and_named(tmp_path: Path, odd: str, says: str) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(GOOD) + odd + "\n" + jsonl(GOOD))
    notes: list[str] = []
    assert read(path, notes) == "a good one\n\na good one"
    (note,) = notes
    assert note.startswith(f"1 of the 3 records of {path} is left out; ")
    assert says.format(path=path) in note
    assert "\n" not in note
    note.encode()


def test_several_odd_records_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(GOOD, GOOD, {"text": None}, GOOD, {}, GOOD))
    notes: list[str] = []
    read(path, notes)
    assert notes == [
        f"2 of the 6 records of {path} are left out; the first: field 'text' of line 3 of {path} is missing."
    ]


def test_more_than_half_odd_is_refused(tmp_path: Path) -> None:
    half = write(tmp_path / "half.jsonl", jsonl(GOOD, {}, {}, GOOD))
    assert read(half) == "a good one\n\na good one"
    more = write(tmp_path / "more.jsonl", jsonl(GOOD, {}, {}))
    assert refused(more) == (
        f"line 2 of {more} has no fields: a record needs text, messages, conversations, or instruction and output, or "
        f"name the field with FILE#FIELD (2 of the 3 records of {more} cannot be used)."
    )


def test_a_list_that_is_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    whole = json.dumps([{"text": f"record {i}"} for i in range(40)], indent=1)
    path = write(tmp_path / "a.json", whole[: int(0.9 * len(whole))])
    notes: list[str] = []
    assert read(path, notes).startswith("record 0\n\nrecord 1")
    assert "is not valid JSON" in notes[0]
    assert "and the rest of the file," in notes[0]
    path = write(tmp_path / "b.json", whole.replace('"record 10"', "record 10"))
    assert "line 33 of" in refused(path)  # more than half of it would be lost


def test_a_damaged_object_of_several_lines_is_located(tmp_path: Path) -> None:
    whole = json.dumps({"data": [{"text": f"record {i}"} for i in range(40)]}, indent=1)
    path = write(tmp_path / "a.json", whole.replace('"record 10"', "record 10"))
    assert f"line 34 of {path} is not valid JSON (Expecting value, column 12)" in refused(path)


def test_empty_texts_are_nothing_odd(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(write(tmp_path / "a.jsonl", jsonl({"text": ""}, {"text": ""}, GOOD)), notes) == "\n\n\n\na good one"
    assert notes == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a,b,c", "line 3 of {path} has 3 columns instead of 2"),
        ('"a"b,c', "line 3 of {path} is not a row of a table"),
        ('a,"b', "line 3 of {path} is not a row of a table"),
    ],
)
def test_odd_rows(tmp_path: Path, rows: str, says: str) -> None:
    path = write(tmp_path / "a.csv", f"id,text\n1,one\n{rows}")
    notes: list[str] = []
    assert read(path, notes) == "one"
    assert says.format(path=path) in notes[0]


def test_a_quotation_mark_that_swallows_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n1,one\n2,"two\n' + "3,three\n" * 20)
    assert "line 3 of" in refused(path)
    assert "correct its quotation marks" in refused(path)


def test_empty_cells_of_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet_bytes([{"text": "a"}, {"text": None}, {"text": "b"}]))
    notes: list[str] = []
    assert read(path, notes) == "a\n\nb"
    assert f"field 'text' of row 2 of {path} is missing" in notes[0]


# Files that are something else


@pytest.mark.parametrize("content", [b"PAR1" + b"\0" * 100, b"PAR1" + b"\0" * 100 + b"PAR1", b"three words here"])
def test_a_damaged_parquet_file(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.parquet", content)
    assert f"{path} is a damaged parquet file (" in refused(path)
    assert "write or copy it again" in refused(path)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"pyarrow, which is not installed: install it \(pip install 'basis-sharing"):
        parse_source(str(path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.jsonl.zst", "a compressed file of a kind that is not read here: decompress it"),
        ("a.zip", "an archive: unpack it"),
        ("a.tar.gz", "an archive: unpack it"),
        ("a.pdf", "a formatted document: save its text as a .txt file"),
        ("a.docx", "a formatted document: save its text as a .txt file"),
        ("a.xlsx", "a spreadsheet: save it as .csv"),
        ("a.arrow", "save it as .parquet"),
        ("a.pkl", "a pickle, which may run programs: give a text"),
        ("a.png", "a picture: give a text"),
    ],
)
def test_suffixes_of_other_things(tmp_path: Path, name: str, says: str) -> None:
    path = write(tmp_path / name, "x")
    with pytest.raises(CorpusError) as caught:
        parse_source(str(path))
    assert says in str(caught.value)
    assert "text:" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"(\xb5/\xfd123", "is compressed with zstd: decompress it (zstd -d)"),
        (b"%PDF-1.7", "is a PDF: extract its text (pdftotext)"),
        (b"PK\x03\x04...", "is a zip archive, as .docx and .xlsx are too"),
        (gzip.compress(gzip.compress(b"abc", mtime=0), mtime=0), "is compressed twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"a.txt" + b"\0" * 252 + b"ustar  \0" + b"\0" * 300, "is a tar archive: unpack it"),
        ("café au lait, s'il vous plaît".encode("latin-1"), "(iconv -f WINDOWS-1252 -t UTF-8)"),
        ("Ἀρχὴ ἥμισυ".encode("utf-16")[:-1], "is damaged UTF-16 text"),
        ("plain words".encode("utf-16-le"), "it looks like UTF-16LE; convert it (iconv -f UTF-16LE -t UTF-8)"),
        ("plain words".encode("utf-16-be"), "it looks like UTF-16BE"),
        ("plain words, à".encode("utf-16-le"), "it looks like UTF-16LE"),
        (bytes(range(256)) * 4, "it looks like a binary file; give a text"),
        ("сорок два".encode("koi8-r"), "from the encoding that it was written in"),
        (bz2.compress(b"abc")[:-4], "is a damaged bzip2 file"),
        (lzma.compress(b"abc")[:-4], "is a damaged xz file"),
    ],
)
def test_contents_of_other_things(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refused(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_tell_the_encoding(tmp_path: Path, encoding: str) -> None:
    assert read(write(tmp_path / "a.txt", "ein Text: äöü\r\n".encode(encoding))) == "ein Text: äöü\r\n"
    assert read(write(tmp_path / "a.jsonl", jsonl(GOOD).encode(encoding))) == "a good one"


# Marks in names


def test_a_file_that_exists_wins_over_marks_in_its_name(tmp_path: Path) -> None:
    plus, hash_, at = (write(tmp_path / name, name) for name in ("c + d.txt", "a#b.txt", "a@b + c#d.txt"))
    for path in (plus, hash_, at):
        assert [source.path for source in parse_mixture(str(path))] == [path]
        assert read(path) == path.name
    mixed = parse_mixture(f"python-docs + {plus} + text:{at} + {hash_}")
    assert [source.path for source in mixed] == [None, plus, at, hash_]


# Folders


def test_a_folder_is_all_texts_in_it(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": "second",
        "a.jsonl": jsonl({"text": "first"}, {}),
        "c/d.rst": "third",
        "c/e.parquet": "damaged",
        ".hidden/f.txt": "never",
        ".f.txt": "never",
        "g.npz": "windows",
        "h.png": "a picture",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, content)
    notes: list[str] = []
    assert read(tmp_path, notes) == "first\n\nsecond\n\nthird"
    assert len(notes) == 2
    assert notes[0].startswith(f"1 of the 2 records of {tmp_path} is left out; line 2 of {tmp_path / 'a.jsonl'}")
    assert notes[1].startswith(
        f"3 files in {tmp_path} are left out; the first: {tmp_path / 'c' / 'e.parquet'} is a dam"
    )
    assert read(f"text:{tmp_path}") == read(tmp_path)


def test_folders_without_texts(tmp_path: Path) -> None:
    assert "has no files: give a folder with text files in it" in refused(tmp_path)
    write(tmp_path / "a.bin", bytes(range(256)))
    assert f"none of the 1 files in {tmp_path} can be read as text ({tmp_path / 'a.bin'} is not" in refused(tmp_path)
    write(tmp_path / "dataset_dict.json", "{}")
    assert f"is a data set that was saved as a folder: write hub:{tmp_path}" in refused(tmp_path)
    write(tmp_path / "config.json", "{}")
    assert "is the folder of a model: give a text, or a folder of texts" in refused(tmp_path)


# Standard input


class Piped(SimpleNamespace):
    def __init__(self, content: str | bytes, terminal: bool = False) -> None:
        raw = content.encode() if isinstance(content, str) else content
        super().__init__(buffer=io.BytesIO(raw), closed=False, isatty=lambda: terminal)

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("spec", "content", "text"),
    [
        ("-", "just words, {not} JSON", "just words, {not} JSON"),
        ("-", gzip.compress(b"zipped words", mtime=0), "zipped words"),
        ("-", jsonl({"text": "a"}, {"text": "b"}), "a\n\nb"),
        ("-", json.dumps([{"text": "a"}, {"text": "b"}], indent=1), "a\n\nb"),
        ("text:-", parquet_bytes([{"text": "a"}, {"text": "b"}]), "a\n\nb"),
        ("-#body", csv_text(("id", "body"), ("1", "a"), ("2", "b")), "a\n\nb"),
        ("-#body", jsonl({"body": "a"}, {"body": "b"}), "a\n\nb"),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, spec: str, content: str | bytes, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(content))
    assert read(spec) == text
    assert read(spec) == text  # it is read once, and kept


def test_standard_input_that_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Piped("", terminal=True), None):
        monkeypatch.setattr(sys, "stdin", stream)
        assert "there is nothing on standard input (-): pipe a text into the command" in refused("-")
    monkeypatch.setattr(sys, "stdin", Piped(" \n"))
    assert "standard input is empty" in refused("-")


def test_standard_input_is_one_text_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped("words"))
    with pytest.raises(CorpusError, match=r"standard input \(-\) is named twice"):
        parse_mixture("- + chat:-")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "reaches only one of several processes" in refused("-")
