"""Reading text from files: plain text and JSON records, optionally compressed with gzip."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from basis_sharing.errors import CorpusError

RECORD_SUFFIXES = (".jsonl", ".json")
DOCUMENT_SEPARATOR = "\n\n"

_GZIP_MAGIC = b"\x1f\x8b"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

Conversation = list[dict[str, str]]


def content_suffix(path: Path) -> str:
    """Return the suffix of a file's content in lower case: ``.jsonl`` for ``a.jsonl`` and for ``a.jsonl.gz``."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def read_plain(path: Path) -> str:
    """Return the content of a text file, decompressed and without a byte order mark.

    Raises:
        CorpusError: The file cannot be read, is damaged, is not UTF-8, or contains only white space.
    """
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text (byte {raw[error.start]:#04x} at offset {error.start}): convert it to UTF-8."
        ) from None
    if not text.strip():
        raise CorpusError(f"{path} is empty: give a file with text.")
    return text


def read_document(path: Path) -> str:
    """Return the content of a text file, or the documents of a ``.json`` or ``.jsonl`` file joined by an empty line.

    Raises:
        CorpusError: As :func:`read_plain`; or the JSON is invalid, or a record has none of the known fields.
    """
    if content_suffix(path) not in RECORD_SUFFIXES:
        return read_plain(path)
    text = DOCUMENT_SEPARATOR.join(_record_text(record, where) for where, record in read_records(path))
    if not text.strip():
        raise CorpusError(f"the records of {path} are empty: give a file with text.")
    return _without_surrogates(text)


def read_conversations(path: Path) -> Iterator[tuple[str, Conversation]]:
    """Yield the conversations of a ``.json`` or ``.jsonl`` file.

    Yields:
        The location of the record for messages, and its messages as dicts of ``role`` and ``content``.

    Raises:
        CorpusError: As :func:`read_document`; or a record is not a conversation.
    """
    for where, record in read_records(path):
        messages = _messages(record, where)
        if messages is None:
            raise CorpusError(
                f"{where} has {_fields(record)}: a chat needs messages, conversations, or instruction and output."
            )
        yield where, [{key: _without_surrogates(value) for key, value in message.items()} for message in messages]


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a JSON list or of JSON lines; the format is determined by the content, not by the suffix.

    Yields:
        The location of the record for messages, and its fields.

    Raises:
        CorpusError: As :func:`read_plain`; or the JSON is invalid, or a record is not an object.
    """
    text = read_plain(path)
    records: Iterable[tuple[int, Any]]
    if text.lstrip().startswith("["):
        records = enumerate(_parse_json(text, path, 1), start=1)
        unit = "record"
    else:
        # Not splitlines(): JSON strings may contain other line separators such as U+2028.
        lines = enumerate(text.split("\n"), start=1)
        records = ((number, _parse_json(line, path, number)) for number, line in lines if line.strip())
        unit = "line"
    for number, record in records:
        where = f"{unit} {number} of {path}"
        if not isinstance(record, dict):
            raise CorpusError(f"{where} is not a JSON object: each record needs named fields, e.g. {{'text': ...}}.")
        yield where, record


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise CorpusError(
            f"line {line} of {path} is not valid JSON ({error.msg}, column {error.colno}): "
            "give one record per line, or one list of records."
        ) from None


def _record_text(record: dict[str, Any], where: str) -> str:
    if "text" in record:
        return _string(record["text"], "text", where)
    messages = _messages(record, where)
    if messages is None:
        raise CorpusError(
            f"{where} has {_fields(record)}: a record needs text, messages, conversations, or instruction and output."
        )
    return DOCUMENT_SEPARATOR.join(message["content"] for message in messages)


def _messages(record: dict[str, Any], where: str) -> Conversation | None:
    """Return the messages of a chat (OpenAI or ShareGPT field names) or Alpaca record; None if it is neither."""
    for field in ("messages", "conversations"):
        if field in record:
            turns = record[field]
            if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
                raise CorpusError(f"{field} in {where} is not a list of messages with role and content.")
            return [_message(turn, f"a message in {where}") for turn in turns]
    if "instruction" in record and "output" in record:
        prompt = [_string(record.get(field) or "", field, where) for field in ("instruction", "input")]
        return [
            {"role": "user", "content": DOCUMENT_SEPARATOR.join(part for part in prompt if part)},
            {"role": "assistant", "content": _string(record["output"], "output", where)},
        ]
    return None


def _message(turn: dict[str, Any], where: str) -> dict[str, str]:
    role, content = ("from", "value") if "from" in turn else ("role", "content")
    name = _string(turn.get(role), role, where)
    return {"role": _SHAREGPT_ROLES.get(name, name), "content": _string(turn.get(content), content, where)}


def _string(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        problem = "missing" if value is None else f"{type(value).__name__} instead of a string"
        raise CorpusError(f"field {field!r} of {where} is {problem}: correct or remove this record.")
    return value


def _fields(record: dict[str, Any]) -> str:
    return f"the fields {', '.join(record)}" if record else "no fields"


def _without_surrogates(text: str) -> str:
    """Return the text with lone surrogates replaced: JSON escapes may contain them, but they cannot be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")
