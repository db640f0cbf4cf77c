"""Records from JSON: JSON lines, a list, or objects one after another."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from basis_sharing.calibration.left_out import OddRecordError
from basis_sharing.calibration.text_files import Content, file_content, plain_text

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TURN_FIELDS = ("messages", "conversations", "conversation")

Record = tuple[str, dict[str, Any]]
"""Where a record is, for messages, and its fields."""

_WHITE = re.compile(r"[ \t\r\n]*")
_RECORD = re.compile(rb'(\xef\xbb\xbf)?\s*\[?\s*\{\s*"')
_OPEN = ("{", "[", ",")
_HALF = 0.5


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a JSON list or of JSON lines, all of which must be objects.

    Yields:
        The location of the record for messages, and its fields.

    Raises:
        CorpusError: The file cannot be read, the JSON is invalid, or a record is not an object.
    """
    for record in json_records(file_content(path)):
        if isinstance(record, OddRecordError):
            raise record
        yield record


def is_turn(value: Any) -> bool:
    """Return whether a JSON value looks like a message of a conversation."""
    return isinstance(value, dict) and ("role" in value or "from" in value) and ("content" in value or "value" in value)


def starts_with_record(content: Content) -> bool:
    """Return whether a content begins as a JSON object or a list of objects does."""
    return _RECORD.match(content.raw) is not None


def json_records(content: Content) -> Iterator[Record | OddRecordError]:
    """Yield the records of a JSON content; its form is determined by what it holds, not by its suffix.

    An object that wraps its rows (``{"data": [{...}, ...]}``) counts as the list of them. What is not a record is
    yielded as an error that says why.

    Raises:
        CorpusError: The content is no text, or more than half of it cannot be parsed.
    """
    text = plain_text(content)
    begin = _skip(text, 0)
    if text.startswith("[", begin):
        try:
            values = _parse(text)
            values = [values] if values and all(map(is_turn, values)) else values  # the file is one conversation
            return _objects(enumerate(values, start=1), content.name, "record")
        except ValueError as error:
            if getattr(error, "msg", "") != "Extra data":  # else a list on every line
                return _objects(_items(text, begin, content.name), content.name, "record")
    elif _spans_lines(text, begin):
        return _objects(_values(text, begin, content.name), content.name, "record")
    return _objects(_lines(text, content.name), content.name, "line")


def _parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not valid.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _parse_at(text: str, position: int) -> tuple[Any, int]:
    """Return the JSON value that begins at a position, and the position after it and the space that follows.

    Raises:
        ValueError: There is none.
    """
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value, _skip(text, end)


def _skip(text: str, position: int) -> int:
    """Return the position after white space."""
    found = _WHITE.match(text, position)
    assert found is not None
    return found.end()


def _spans_lines(text: str, begin: int) -> bool:
    """Return whether the first value is an object of several lines; a damaged one by the end of its first line."""
    line = text[begin:].partition("\n")[0].rstrip()
    if len(line) == len(text) - begin or not line.startswith("{"):
        return False
    try:
        return "\n" in text[begin : _parse_at(text, begin)[1]].rstrip()
    except ValueError:
        return line.endswith(_OPEN)


def _lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON strings may contain other line separators such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, _parse(line)
            except ValueError as error:
                yield number, _invalid(error, number, name)


def _items(text: str, begin: int, name: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a list that is damaged or cut off, and an error for what cannot be parsed."""
    position, number = _skip(text, begin + 1), 0
    try:
        while True:
            number += 1
            value, end = _parse_at(text, position)
            yield number, value
            position = end
            if not text.startswith(",", position):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position = _skip(text, position + 1)
    except ValueError as error:
        yield number, _rest(error, text, position, name)


def _values(text: str, begin: int, name: str) -> Iterator[tuple[int, Any]]:
    """Yield values that follow one another, and an error from a damaged one on; an only one is unwrapped."""
    position, number = begin, 0
    while position < len(text):
        number += 1
        try:
            value, end = _parse_at(text, position)
        except ValueError as error:
            yield number, _rest(error, text, position, name)
            return
        if number == 1 and end == len(text):
            yield from enumerate(_unwrapped(value), start=1)
        else:
            yield number, value
        position = end


def _unwrapped(value: dict[str, Any]) -> list[Any]:
    """Return the rows of an object that wraps them, or the object itself."""
    lists = [one for one in value.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
    return lists[0] if len(lists) == 1 and not {"text", "prompt", *TURN_FIELDS} & value.keys() else [value]


def _rest(error: ValueError, text: str, position: int, name: str) -> OddRecordError:
    """Return the error for the rest of a text, from a position on.

    Raises:
        OddRecordError: The rest is more than half of the text.
    """
    found = _invalid(error, 1 if isinstance(error, json.JSONDecodeError) else text.count("\n", 0, position) + 1, name)
    share = (len(text) - position) / len(text)
    if share > _HALF:
        raise found
    return OddRecordError(f"{found.problem}, and the rest of the file, {share:.1%}, is not read", found.remedy)


def _invalid(error: ValueError, first_line: int, name: str) -> OddRecordError:
    """Return the error for a text that begins on ``first_line`` and is not valid JSON."""
    line, reason = first_line, str(error).partition(":")[0]
    if isinstance(error, json.JSONDecodeError):
        line, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
    return OddRecordError(
        f"line {line} of {name} is not valid JSON ({reason})", "give one record per line, or one list of records"
    )


def _objects(values: Iterable[tuple[int, Any]], name: str, unit: str) -> Iterator[Record | OddRecordError]:
    """Yield JSON values as records; a list of messages becomes a record that holds it."""
    for number, value in values:
        where = f"{unit} {number} of {name}"
        if isinstance(value, OddRecordError):
            yield value
        elif isinstance(value, dict):
            yield where, value
        elif isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            yield where, {"messages": value}
        else:
            yield OddRecordError(f"{where} is not a JSON object", "each record needs named fields, e.g. {'text': ...}")
