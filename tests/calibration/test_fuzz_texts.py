"""Mutated texts of every form: each is read, or refused in one sentence; nothing else comes out.

``BASIS_SHARING_FUZZ=10000`` sets the number of mutations; they follow from their numbers, which a failure names.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.calibration.corpora import parse_source, read_text
from basis_sharing.calibration.windows import evaluation_windows
from basis_sharing.errors import CorpusError
from pico import VOCAB, pico_tokenizer

MUTATIONS = int(os.environ.get("BASIS_SHARING_FUZZ", "200"))
SHARDS = 4

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, {"y": null}]}'}}
RECORDS: list[Any] = [
    {"text": "a text, with \u2028 and \ud83d in it\n" * 3, "id": 1},
    {"content": "b"},
    {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
    {"instruction": "a", "input": "", "output": "c"},
    {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
        ]
    },
    {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "{}"},
            {"from": "function_call", "value": '[{"name": "f", "arguments": {}}]'},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
]
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1e400, float("nan"), 10**40, "", " ", "\ud800", "\0", "[{", [], [[]], [None], {},
    '[{"role": "user"}]', {"role": 1}, {"a": []}, "x" * 2000, ["text"], [{}],
    [{"role": "user", "content": "a"}], {"type": "text"},
]  # fmt: skip
ODD_BYTES = [b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b"{", b"[" * 3000, b"]", b",",
             b"\\u", b"1" * 5000, b"\x1f\x8b", b"PAR1", b"\xe2\x80\xa8", b'"text"']  # fmt: skip


def mutated_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one thing in it replaced, removed, repeated or renamed."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice(ODD_VALUES)
    place = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    kind = chance.randrange(5)
    if kind == 0:
        del changed[place]
    elif kind == 1 and isinstance(changed, dict):
        changed[chance.choice(["role", "from", "text", "messages", "tool_calls", "odd\ud800"])] = changed.pop(place)
    elif kind == 1:
        changed.append(changed[place])
    else:
        changed[place] = mutated_value(changed[place], chance)
    return changed


def mutated_bytes(raw: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        first, last = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
        kind = chance.randrange(5)
        if kind == 0:
            raw = raw[:last]
        elif kind == 1:
            raw = raw[:first] + chance.choice(ODD_BYTES) + raw[first:]
        elif kind == 2:
            raw = raw[:first] + chance.choice(ODD_BYTES) + raw[min(last, first + 20) :]
        elif kind == 3 and raw:
            at = min(first, len(raw) - 1)
            raw = raw[:at] + bytes([raw[at] ^ (1 << chance.randrange(8))]) + raw[at + 1 :]
        else:
            raw = raw[:first] + raw[first:last] * 2 + raw[last:]
    return raw


def json_lines(records: list[Any]) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


def json_list(records: list[Any]) -> bytes:
    return json.dumps(records, indent=1).encode()


def wrapped(records: list[Any]) -> bytes:
    return json.dumps({"data": records}, indent=1).encode()


def csv_table(records: list[Any]) -> bytes:
    buffer = io.StringIO()
    rows = csv.writer(buffer)
    rows.writerow(("text", "messages"))
    rows.writerows((record.get("text"), json.dumps(record)) for record in records if isinstance(record, dict))
    return buffer.getvalue().encode("utf-8", "replace")


def parquet_table(records: list[Any]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    buffer = io.BytesIO()
    texts = [json.dumps(record) for record in records]
    turns = [[{"role": "user", "content": text}] for text in texts]
    parquet.write_table(pyarrow.table({"text": texts, "messages": turns}), buffer)
    return buffer.getvalue()


FORMS: list[tuple[str, Callable[[list[Any]], bytes]]] = [
    ("a.jsonl", json_lines),
    ("a.json", json_list),
    ("a.json", wrapped),
    ("a.csv", csv_table),
    ("a.parquet", parquet_table),
]
COMPRESSIONS: list[Callable[[bytes], bytes]] = [bytes, bytes, bytes, gzip.compress, bz2.compress, lzma.compress]


def mutation(number: int, folder: Path) -> Path:
    """Return a file whose records, content or compressed bytes are mutated."""
    chance = random.Random(number)
    name, write = FORMS[number % len(FORMS)]
    records = chance.choices(RECORDS, k=chance.choice((1, 4, 12)))
    level = chance.randrange(3)
    if level == 0:
        records = [mutated_value(record, chance) if chance.random() < 0.3 else record for record in records]
    raw = write(records)
    if level == 1:
        raw = mutated_bytes(raw, chance)
    raw = chance.choice(COMPRESSIONS)(raw)
    if level == 2:
        raw = mutated_bytes(raw, chance)
    path = folder / name
    path.write_bytes(raw)
    return path


def outcome(number: int, folder: Path, tokenizer: Any) -> str:
    path = mutation(number, folder)
    notes: list[str] = []
    try:
        if number // len(FORMS) % 2:
            read_text(parse_source(str(path)), "train", notes).encode()
        else:
            text = evaluation_windows(
                f"chat:{path}", tokenizer=tokenizer, windows=None, length=2, vocab_size=VOCAB, bos=False
            )
            notes += text.notes
    except CorpusError as error:
        notes.append(str(error))
        return "refused"
    finally:
        for note in notes:
            assert "\n" not in note.encode().decode(), f"mutation {number}: {note}"
    return "noted" if notes else "read"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_mutated_texts_are_read_or_refused_in_a_sentence(tmp_path: Path, shard: int) -> None:
    tokenizer, outcomes = pico_tokenizer(), Counter[str]()
    for number in range(shard, MUTATIONS, SHARDS):
        try:
            outcomes[outcome(number, tmp_path, tokenizer)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number}: {type(error).__name__}: {error}") from error
    print(f"shard {shard}: {dict(outcomes)}")
    assert len(outcomes) == 3  # the mutations are neither all harmless nor all fatal
