"""Reading the texts of a source: of a file, a folder, standard input or a data set; as documents or as chats."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_sharing.calibration.chats import KNOWN_FIELDS, Chat, record_chat, record_text
from basis_sharing.calibration.data_sets import DataSet, Split, data_set_records
from basis_sharing.calibration.left_out import OddRecordError, Reading
from basis_sharing.calibration.records import JSON_SUFFIXES, Record, json_records, starts_with_record
from basis_sharing.calibration.tables import CSV_SUFFIXES, csv_records, is_parquet, parquet_records
from basis_sharing.calibration.text_files import (
    STANDARD_INPUT,
    Content,
    file_content,
    foreign_suffix,
    piped_content,
    plain_text,
    regular_files,
)
from basis_sharing.errors import CorpusError

_WINDOW_SUFFIXES = (".npz", ".safetensors")

Convert = Callable[[str, dict[str, Any], Reading], str]


@dataclass(frozen=True)
class Place:
    """Where text is read.

    Attributes:
        at: A file, a folder or a data set; None: standard input.
        column: The column to read; None: the known ones.
    """

    at: Path | DataSet | None
    column: str | None = None


def read_documents(place: Place, split: Split, reading: Reading) -> list[str]:
    """Return the documents of a source: a plain text is one, and every record is one.

    Args:
        place: Where they are.
        split: The split of a data set that names none.
        reading: Counts what is left out.

    Raises:
        CorpusError: A file cannot be read, is damaged or not UTF-8; most records of it have no text; or all is empty.
    """

    def convert(where: str, record: dict[str, Any], part: Reading) -> str:
        return record_text(where, record, place.column, part)

    texts = _texts(place, split, convert, reading, plain=True)
    if not any(text.strip() for text in texts):
        raise CorpusError(f"the records of {_name(place)} are empty: give a file with text.")
    return texts


def read_chats(place: Place, split: Split, render: Callable[[Chat, Reading], str], reading: Reading) -> list[str]:
    """Return the conversations of a source, as a chat template writes them.

    Args:
        place: Where they are.
        split: The split of a data set that names none.
        render: Writes one conversation; raises OddRecordError where the template refuses it.
        reading: Counts what is left out.

    Raises:
        CorpusError: As :func:`read_documents`; or most records of a file are no conversations.
    """

    def convert(where: str, record: dict[str, Any], part: Reading) -> str:
        return render(record_chat(where, record, place.column, part), part)

    return _texts(place, split, convert, reading, plain=False)


def _name(place: Place) -> str:
    if place.at is None:
        return STANDARD_INPUT
    return place.at.name if isinstance(place.at, DataSet) else str(place.at)


def _texts(place: Place, split: Split, convert: Convert, reading: Reading, *, plain: bool) -> list[str]:
    """Return the texts of a place, converted from records; plain text as it is where ``plain``."""
    if isinstance(place.at, DataSet):
        records = data_set_records(place.at, place.column, split, reading, KNOWN_FIELDS)
        return list(_converted(records, convert, reading))
    if place.at is None:
        return list(_content_texts(piped_content(sys.stdin), place.column, convert, reading, plain=plain))
    if not place.at.is_dir():
        return list(_content_texts(file_content(place.at), place.column, convert, reading, plain=plain))
    texts: list[str] = []
    found = 0
    for path in regular_files(place.at):
        try:
            _check_text(path)
            part = Reading(str(path))
            texts += list(_content_texts(file_content(path), place.column, convert, part, plain=plain))
            reading.add(part)
            found += 1
        except CorpusError as error:
            reading.leave_out_file(error)
    reading.check_files(place.at, found)
    return texts


def _check_text(path: Path) -> None:
    """Check that the suffix of a file in a folder does not stand for something else than text.

    Raises:
        CorpusError: It does.
    """
    if path.suffix.lower() in _WINDOW_SUFFIXES:
        raise CorpusError(f"{path} is a file of tensors: give token windows as a file of their own.")
    if foreign := foreign_suffix(path):
        raise CorpusError(f"{path} is {foreign[0]}: {foreign[1]}.")


def _content_texts(
    content: Content, column: str | None, convert: Convert, reading: Reading, *, plain: bool
) -> Iterator[str]:
    """Return the texts of one file."""
    records = _records(content, column, plain)
    if records is not None:
        return _converted(records, convert, reading)
    if column is not None:
        raise CorpusError(f"{content.name} is plain text, which has no column {column!r}: leave out #{column}.")
    return iter([plain_text(content)])


def _records(content: Content, column: str | None, plain: bool) -> Iterable[Record | OddRecordError] | None:
    """Return the records of a content; None if it is plain text, which it can be if ``plain``.

    The suffix tells the format, else the beginning of standard input and of contents that must be records.
    """
    if is_parquet(content):
        return parquet_records(content, column, KNOWN_FIELDS)
    if content.suffix in CSV_SUFFIXES:
        return csv_records(content, column)
    if content.suffix in JSON_SUFFIXES:
        return json_records(content)
    piped = content.name == STANDARD_INPUT
    if starts_with_record(content) and (piped or column is not None):
        return json_records(content)
    if piped and column is not None:
        return csv_records(content, column)
    return None if plain else json_records(content)


def _converted(records: Iterable[Record | OddRecordError], convert: Convert, reading: Reading) -> Iterator[str]:
    """Yield the records that can be converted, and count the others.

    Raises:
        CorpusError: More than half of the records cannot be converted.
    """
    for record in records:
        try:
            if isinstance(record, OddRecordError):
                raise record
            text = convert(*record, reading)
        except OddRecordError as error:
            reading.leave_out(error)
        else:
            reading.keep()
            yield text
    reading.check()
