"""Records from tables: CSV and parquet."""

import csv
import importlib.util
import io
import sys
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from basis_sharing.calibration.left_out import OddRecordError
from basis_sharing.calibration.records import Record
from basis_sharing.calibration.text_files import Content, plain_text
from basis_sharing.errors import CorpusError

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIX = ".parquet"

_MAGIC = b"PAR1"
_DELIMITERS = (",", ";", "\t")
_ROWS = 1000
_SHOWN, _WIDTH = 12, 40
_HALF = 0.5


def is_parquet(content: Content) -> bool:
    """Return whether a content is, or should be, a parquet file."""
    return content.suffix == PARQUET_SUFFIX or (content.raw.startswith(_MAGIC) and content.raw.endswith(_MAGIC))


def require(package: str, what: str, remedy: str) -> None:
    """Check that an optional package is there, without importing it.

    Raises:
        CorpusError: It is not.
    """
    there = sys.modules[package] if package in sys.modules else importlib.util.find_spec(package)
    if there is None:
        raise CorpusError(f"{what} is read by the package {package}, which is not installed: {remedy}.")


def require_parquet(name: str) -> None:
    """Check that a parquet file could be read.

    Raises:
        CorpusError: It could not.
    """
    require("pyarrow", name, "install it (pip install 'basis-sharing[hub]'), or save the table as .jsonl")


def check_column(column: str | None, columns: list[str], name: str) -> None:
    """Check that a table has the column that was asked for.

    Raises:
        CorpusError: It has not; names those that it has.
    """
    if column is not None and column not in columns:
        raise CorpusError(f"{name} has no column {column!r}: name one of {listed(columns)}.")


def listed(names: list[str]) -> str:
    """Return names for a sentence, shortened where they are long or many."""
    short = [shorten(name, _WIDTH, placeholder="...") or name[:_WIDTH] for name in names[:_SHOWN]]
    return ", ".join(short) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def csv_records(content: Content, column: str | None) -> Iterator[Record | OddRecordError]:
    """Yield the rows of a CSV content as records; the first line names the columns.

    Raises:
        CorpusError: The content is no text, its first line is no header, it has no such column, or more than half of
            it is inside one pair of quotation marks.
    """
    text = plain_text(content)
    rows = _csv_rows(text, content.suffix)
    header = rows[0][1]
    if isinstance(header, str):
        raise CorpusError(
            f"the first line of {content.name} does not name columns ({header}): write their names there."
        )
    check_column(column, header, content.name)
    lines = text.count("\n") + 1
    for first, row, last in rows[1:]:
        where = f"line {first} of {content.name}"
        if isinstance(row, str):
            error = OddRecordError(f"{where} is not a row of a table ({row})", "correct its quotation marks")
            if last - first > _HALF * lines:
                raise error
            yield error
        elif len(row) != len(header):
            problem = f"{where} has {len(row)} columns instead of {len(header)}"
            yield OddRecordError(problem, "correct or remove this row")
        else:
            yield where, dict(zip(header, row, strict=True))


def parquet_records(content: Content, column: str | None, known: frozenset[str]) -> Iterator[Record | OddRecordError]:
    """Yield the rows of a parquet content as records.

    Args:
        content: The content.
        column: The only column that is needed; None: all that are in ``known``, or if there is none, all.
        known: Names of columns that are read without being asked for.

    Raises:
        CorpusError: The content is damaged, or has no such column; or pyarrow is not installed.
    """
    require_parquet(content.name)
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content.raw))
        columns = list(file.schema_arrow.names)
        check_column(column, columns, content.name)
        wanted = [column] if column is not None else [name for name in columns if name in known] or columns
        for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {content.name}", pruned(row)
    except CorpusError:
        raise
    except Exception as error:  # pyarrow raises errors of many kinds for damaged files
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise CorpusError(
            f"{content.name} is a damaged parquet file ({reason}): write or copy it again, it may have been cut off."
        ) from error


def pruned(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the empty fields inside its values, which tables have where records differ."""
    return {name: _pruned(value) for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(one) for name, one in value.items() if one is not None}
    return [_pruned(one) for one in value] if isinstance(value, list) else value


def _csv_rows(text: str, suffix: str) -> list[tuple[int, list[str] | str, int]]:
    """Return the rows of a table, or why they are none, with their first and last lines."""
    header = text.lstrip().partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else max(_DELIMITERS, key=header.count)
    rows: list[tuple[int, list[str] | str, int]] = []
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than 128 kB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        while True:
            first = reader.line_num + 1
            row: list[str] | str
            try:
                row = next(reader)
            except StopIteration:
                return rows
            except csv.Error as error:
                row = str(error)
            if row:
                rows.append((first, row, reader.line_num))
    finally:
        csv.field_size_limit(limit)
