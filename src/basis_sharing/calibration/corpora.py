"""Sources of calibration and evaluation text: parsing their names and reading their text.

Imports neither torch nor transformers, so that a source can be checked before the heavy libraries are loaded.
"""

import difflib
import io
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from basis_sharing.calibration.chats import DOCUMENT_SEPARATOR, Chat
from basis_sharing.calibration.data_sets import SYNTAX, DataSet, Split, names_data_set, parse_data_set, published_rows
from basis_sharing.calibration.left_out import Reading
from basis_sharing.calibration.python_docs import python_docs
from basis_sharing.calibration.readers import Place, read_chats, read_documents
from basis_sharing.calibration.records import JSON_SUFFIXES
from basis_sharing.calibration.tables import CSV_SUFFIXES, PARQUET_SUFFIX, require_parquet
from basis_sharing.calibration.text_files import content_suffix, foreign_suffix, read_plain
from basis_sharing.errors import CorpusError

Kind = Literal[
    "wikitext2", "wikitext2-rows", "c4", "text", "chat", "windows", "self", "python-docs", "python-docs:heldout"
]

_NAMES: dict[str, Kind] = {
    "python-docs": "python-docs",
    "python-docs:heldout": "python-docs:heldout",
    "wikitext2": "wikitext2",
    "wikitext2-rows": "wikitext2-rows",
    "c4": "c4",
    "self": "self",
}
_PREFIXES: dict[str, Kind] = {
    "wikitext2": "wikitext2",
    "wikitext2-rows": "wikitext2-rows",
    "c4": "c4",
    "chat": "chat",
    "text": "text",
    "windows": "windows",
}
_HUB = "hub"
_STANDARD_INPUT = "-"
_OF_RECORDS = ("c4", "chat", "text")
_TEXT_SUFFIXES = (".txt", ".raw", ".md", ".tokens", ".utf8", *JSON_SUFFIXES, *CSV_SUFFIXES, PARQUET_SUFFIX)
_WINDOW_SUFFIXES = (".npz", ".safetensors")
_AND = " + "
_COLUMN = "#"


@dataclass(frozen=True)
class Source:
    """A parsed source of text.

    Attributes:
        kind: Kind of the source.
        path: The local file or folder; None if the text comes from standard input, from the hub, from Python's
            documentation or from the model.
        spec: The source as the user wrote it.
        column: The column or field to read; None: the known ones.
        data_set: The data set; None for all other sources.
        piped: Whether the text comes from standard input.
    """

    kind: Kind
    path: Path | None
    spec: str
    column: str | None = None
    data_set: DataSet | None = None
    piped: bool = False


def parse_source(spec: str) -> Source:
    """Parse the name of one source of text, without reading it.

    Args:
        spec: ``python-docs``, ``python-docs:heldout``, ``self``, ``wikitext2``, ``wikitext2-rows`` or ``c4`` (from the
            hub, or from a file as ``wikitext2:FILE``), ``windows:FILE``; or the place of a text, after ``chat:`` or
            ``text:`` or alone: a file whose suffix determines its form, a folder, ``-`` for standard input, each
            followed by ``#COLUMN`` or not, or ``hub:NAME[:CONFIG][@SPLIT][#COLUMN]``. A file or folder that exists
            wins over these marks in its name.

    Raises:
        CorpusError: The name is unknown, there is no such file, or it is of a kind that cannot be read; standard input
            is a terminal; or a package that reads the source is not installed.
    """
    if spec in _NAMES:
        return Source(_NAMES[spec], None, spec)
    prefix, colon, name = spec.partition(":")
    if colon and prefix in _PREFIXES:
        if not name:
            raise CorpusError(f"{spec!r} lacks a file: write {prefix}:FILE.")
        return _placed(_PREFIXES[prefix], name, spec)
    if _is_place(spec):
        return _placed(None, spec, spec)
    raise CorpusError(_unknown(spec))


def parse_mixture(spec: str) -> tuple[Source, ...]:
    """Parse one or several sources of text, separated by plus signs: ``A + B``.

    Plus signs in the name of a file that exists do not separate.

    Raises:
        CorpusError: As :func:`parse_source`, for one of them; or several read standard input.
    """
    parts = spec.split(_AND)
    sources = []
    while parts:
        joined = (_AND.join(parts[:count]).strip() for count in range(len(parts), 1, -1))
        taken = next((name for name in joined if _exists_with_prefix(name)), parts[0].strip())
        sources.append(parse_source(taken))
        del parts[: taken.count(_AND) + 1]
    _check_piped_once(sources)
    return tuple(sources)


def parse_texts(mixture: str | None, texts: Iterable[str] = ()) -> tuple[Source, ...]:
    """Parse all texts of a run: the mixture that it calibrates on, if any, and those that it measures on.

    Raises:
        CorpusError: As :func:`parse_source`, for one of them; or several read standard input.
    """
    sources = (*(parse_mixture(mixture) if mixture is not None else ()), *map(parse_source, texts))
    _check_piped_once(sources)
    return sources


def read_text(source: Source, split: Split, notes: list[str] | None = None) -> str:
    """Read the text of a source.

    Args:
        source: A source of any kind but ``chat``, ``windows`` and ``self``.
        split: The split of a data set from the hub that names none; ignored for local files.
        notes: Receives sentences about what is left out.

    Returns:
        The text. WikiText-2 is the published file, or its rows joined by an empty line (``wikitext2-rows``); the
        documents of C4, of records and of folders are joined by an empty line.

    Raises:
        CorpusError: The file cannot be read, is empty, damaged or not UTF-8, or most of its records have no text; or
            the hub cannot be reached.
    """
    match source.kind:
        case "python-docs" | "python-docs:heldout":
            return python_docs(heldout=source.kind == "python-docs:heldout")
        case "wikitext2":
            if source.path is not None:
                return read_plain(source.path)
            # Empty rows of the hub's data set lack the single space that the published file has there.
            return "".join(row or " \n" for row in published_rows(source.kind, split))
        case "wikitext2-rows":
            rows = wikitext_rows(read_plain(source.path)) if source.path else published_rows(source.kind, split)
            return "\n\n".join(rows)
        case "c4" if source.spec == "c4":
            return DOCUMENT_SEPARATOR.join(published_rows(source.kind, split))
        case "c4" | "text":
            reading = Reading(source.spec)
            documents = read_documents(_place(source), split, reading)
            if notes is not None:
                notes += reading.notes()
            return DOCUMENT_SEPARATOR.join(documents)
        case _:
            raise ValueError(f"a source of kind {source.kind} has no text of its own")


def read_conversations(source: Source, split: Split, render: Callable[[Chat, Reading], str], notes: list[str]) -> str:
    """Read the conversations of a source of kind ``chat``.

    Args:
        source: The source.
        split: The split of a data set from the hub that names none.
        render: Writes one conversation as text; raises OddRecordError where it cannot.
        notes: Receives sentences about what is left out.

    Returns:
        The texts of all conversations, one after another.

    Raises:
        CorpusError: As :func:`read_text`; or most records are no conversations.
    """
    reading = Reading(source.spec)
    chats = read_chats(_place(source), split, render, reading)
    notes += reading.notes()
    return "".join(chats)


def wikitext_rows(text: str) -> list[str]:
    """Return WikiText as the rows of the Hugging Face data set: lines with their line end, blank ones as ``""``."""
    return [line if line.strip() else "" for line in io.StringIO(text, newline=None)]


def _check_piped_once(sources: Iterable[Source]) -> None:
    """Check that standard input, which can be read only once, is one source at the most.

    Raises:
        CorpusError: It is more.
    """
    if sum(source.piped for source in sources) > 1:
        raise CorpusError("standard input (-) is named twice, it can be only one of the texts: use a file.")


def _place(source: Source) -> Place:
    return Place(source.data_set or source.path, source.column)


def _exists(name: str) -> bool:
    return bool(name) and os.path.exists(os.path.expanduser(name))


def _split_column(name: str) -> tuple[str, str | None]:
    """Return the place and the column of ``PLACE#COLUMN``; a name that exists as it is has no column."""
    if not _exists(name):
        for position in (i for i, mark in enumerate(name) if mark == _COLUMN):
            if _exists(name[:position]) or name[:position] == _STANDARD_INPUT:
                return name[:position], name[position + 1 :]
    return name, None


def _is_place(name: str) -> bool:
    place = _split_column(name)[0]
    return place == _STANDARD_INPUT or _exists(place) or place.startswith(f"{_HUB}:")


def _exists_with_prefix(spec: str) -> bool:
    prefix, _, name = spec.partition(":")
    return any(_exists(_split_column(one)[0]) for one in (spec, name if prefix in _PREFIXES else ""))


def _placed(kind: Kind | None, name: str, spec: str) -> Source:
    """Return a source of text by its place; ``kind`` is None if the place decides."""
    place, column = _split_column(name) if kind is None or kind in _OF_RECORDS else (name, None)
    if column == "":
        raise CorpusError(f"{spec!r} lacks a column after {_COLUMN}: write {place}{_COLUMN}COLUMN.")
    if place == _STANDARD_INPUT and (kind is None or kind in _OF_RECORDS):
        _check_piped()
        return Source(kind or "text", None, spec, column, piped=True)
    if place.startswith(f"{_HUB}:") and (kind is None or kind in ("chat", "text")) and not _exists(place):
        data_set, column = parse_data_set(place.removeprefix(f"{_HUB}:"))
        return Source(kind or "text", data_set.folder, spec, column, data_set)
    path = _existing(place, folders=kind is None or kind in _OF_RECORDS)
    if content_suffix(path) == PARQUET_SUFFIX and kind != "windows":
        require_parquet(place)
    return Source(kind or _kind_of(path, place), path, spec, column)


def _check_piped() -> None:
    """Check that there is something on standard input.

    Raises:
        CorpusError: It is a terminal or closed, or there are several processes, one of which would get it.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise CorpusError("there is nothing on standard input (-): pipe a text into the command, or name a file.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CorpusError("standard input (-) reaches only one of several processes: save the text as a file.")


def _existing(name: str, *, folders: bool) -> Path:
    path = Path(os.path.expanduser(name))
    if not _exists(name):
        raise CorpusError(f"there is no file {name}: check the path.")
    if not path.is_dir():
        return path
    if not folders:
        raise CorpusError(f"{name} is a folder: give one file in it.")
    if (path / "config.json").is_file():
        raise CorpusError(f"{name} is the folder of a model: give a text, or a folder of texts.")
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow"))):
        raise CorpusError(f"{name} is a data set that was saved as a folder: write {_HUB}:{name}.")
    return path


def _kind_of(path: Path, name: str) -> Kind:
    """Return the kind of a file by its suffix.

    Raises:
        CorpusError: The suffix does not tell it, or it is not text.
    """
    suffix = content_suffix(path)
    if suffix in _WINDOW_SUFFIXES and not path.is_dir():
        return "windows"
    if suffix in _TEXT_SUFFIXES or path.is_dir():
        return "text"
    if foreign := foreign_suffix(path):
        raise CorpusError(f"{name} is {foreign[0]}: {foreign[1]}.")
    raise CorpusError(
        f"the name of {name} does not tell what it holds: write text:{name} for plain text, or windows:{name} for "
        "token windows."
    )


def _unknown(spec: str) -> str:
    if _AND in spec:
        return f"{spec!r} is several texts, but here one is read at a time: give them one by one."
    prefix, colon, name = spec.partition(":")
    has_prefix = len(prefix) > 1 and bool(colon)  # one letter is a Windows drive
    suffix = content_suffix(Path(spec.partition(_COLUMN)[0]))
    looks_like_path = "/" in spec or "\\" in spec or suffix in _TEXT_SUFFIXES + _WINDOW_SUFFIXES
    if looks_like_path and not has_prefix:
        remedy = f", or write {_HUB}:{spec} for a data set of the hub" if names_data_set(spec) and not suffix else ""
        return f"there is no file {spec}: check the path{remedy}."
    near = [f"{known}:{name}" for known in difflib.get_close_matches(prefix, (*_PREFIXES, _HUB), n=1) if has_prefix]
    near = near or difflib.get_close_matches(spec, _NAMES, n=1)
    if near:
        return f"unknown text {spec!r}: did you mean {near[0]!r}?"
    return f"unknown text {spec!r}: give a file, a folder, {SYNTAX}, or one of {', '.join(_NAMES)}."
