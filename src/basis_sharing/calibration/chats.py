"""Records as text and as chats: the fields that people use for them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from basis_sharing.calibration.left_out import OddRecordError, Reading
from basis_sharing.calibration.records import TURN_FIELDS, is_turn
from basis_sharing.calibration.tables import listed

DOCUMENT_SEPARATOR = "\n\n"

TEXT_FIELDS = ("text", "content")
_PAIRS = (
    (("instruction", "input", "context"), ("output", "response")),
    (("prompt",), ("completion", "response", "chosen")),
    (("question", "context"), ("answer", "response")),
    (("query",), ("response", "answer")),
    (("input",), ("output",)),
)
"""Fields of what is asked, the first of which is needed, and of the answer, one of which is needed."""
KNOWN_FIELDS = frozenset(
    (*TEXT_FIELDS, *TURN_FIELDS, "tools", "role", *(name for pair in _PAIRS for names in pair for name in names))
)

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "assistant", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_CARRIED = ("name", "tool_call_id", "reasoning_content")
_SYSTEM = ("system", "developer")

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation as chat templates expect it.

    Attributes:
        where: The location of its record, for messages.
        messages: Dicts of ``role`` and ``content`` (a string), and of ``tool_calls`` and names where there are any.
        tools: Descriptions of the tools that the assistant may call.
    """

    where: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def record_text(where: str, record: dict[str, Any], column: str | None, reading: Reading) -> str:
    """Return the text of a record: a field of text, or what is said in it joined by empty lines.

    Args:
        where: The location of the record, for messages.
        record: Its fields.
        column: The field to use; None: the known ones.
        reading: Counts the parts that are not text.

    Raises:
        OddRecordError: It has no such field, or one of another type.
    """
    if column is not None:
        value = _column(where, record, column)
        if isinstance(value, str) and _turns(value) is value:
            return without_surrogates(value)
        return _said(_messages(value, column, where, reading))
    for name in TEXT_FIELDS:
        if record.get(name) is not None:
            return without_surrogates(_string(record[name], name, where))
    if all(isinstance(record.get(name), str) for name in ("prompt", "completion")):
        return without_surrogates(record["prompt"] + record["completion"])  # as trainers do
    messages = _known_messages(where, record, reading)
    if messages is None:
        raise _unknown(where, record, "a record needs text, messages, conversations, or instruction and output")
    return _said(messages)


def record_chat(where: str, record: dict[str, Any], column: str | None, reading: Reading) -> Chat:
    """Return the conversation of a record.

    Raises:
        OddRecordError: It has none, or one of unknown form, or without any text.
    """
    if column is not None:
        messages: list[Message] | None = _messages(_column(where, record, column), column, where, reading)
    else:
        messages = _known_messages(where, record, reading)
    if messages is None:
        raise _unknown(where, record, "a chat needs messages, conversations, or instruction and output")
    if not any(message["content"].strip() or "tool_calls" in message for message in messages):
        raise OddRecordError(f"the messages in {where} are empty", "correct or remove this record")
    tools = _json(record.get("tools"))
    listed_tools = tools if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools) else []
    return Chat(where, messages, listed_tools)


def folded(chat: Chat) -> Chat | None:
    """Return a chat with its system messages put in front of the first message of the user; None if it has none."""
    system = [message["content"] for message in chat.messages if message["role"] in _SYSTEM]
    rest = [dict(message) for message in chat.messages if message["role"] not in _SYSTEM]
    user = next((message for message in rest if message["role"] == "user"), None)
    if not system or user is None:
        return None
    user["content"] = DOCUMENT_SEPARATOR.join((*system, user["content"]))
    return Chat(chat.where, rest, chat.tools)


def without_surrogates(text: str) -> str:
    """Return the text with lone surrogates replaced: JSON escapes may contain them, but they cannot be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _column(where: str, record: dict[str, Any], column: str) -> Any:
    if column not in record:
        raise OddRecordError(f"{where} has no column {column!r}", f"name one of {listed(list(record)) or 'its fields'}")
    if record[column] is None:
        raise OddRecordError(f"field {column!r} of {where} is missing", "correct or remove this record")
    return record[column]


def _known_messages(where: str, record: dict[str, Any], reading: Reading) -> list[Message] | None:
    """Return the messages of a record by the names of its fields; None if it has none of the known ones."""
    for name in TURN_FIELDS:
        if record.get(name) is not None:
            return _messages(record[name], name, where, reading)
    given = {name for name, value in record.items() if value is not None}
    for asking, answers in _PAIRS:
        answer = next((name for name in answers if name in given), None)
        if asking[0] in given and answer is not None:
            return _asked(where, record, asking, reading) + _answered(where, record, answer, reading)
    return None


def _asked(where: str, record: dict[str, Any], names: Iterable[str], reading: Reading) -> list[Message]:
    first, *more = names
    if isinstance(record[first], list):
        return _messages(record[first], first, where, reading)
    parts = [_string(record.get(name) or "", name, where) for name in (first, *more)]
    return [_said_by("user", DOCUMENT_SEPARATOR.join(part for part in parts if part))]


def _answered(where: str, record: dict[str, Any], name: str, reading: Reading) -> list[Message]:
    value = record[name]
    if not isinstance(value, list):
        return [_said_by("assistant", _string(value, name, where))]
    messages = _messages(value, name, where, reading)
    repeats_question = messages[0]["role"] != "assistant"  # the chosen answer of preference data holds the whole chat
    return [message for message in messages if message["role"] == "assistant"] if repeats_question else messages


def _said_by(role: str, content: str) -> Message:
    return {"role": role, "content": without_surrogates(content)}


def _turns(value: Any) -> Any:
    """Return a list that was stored as JSON, or as a table of columns, as a list; anything else as it is."""
    parsed = _json(value)
    if parsed is not value and isinstance(parsed, list) and all(map(is_turn, parsed)):
        return parsed
    if isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
        lengths = {len(one) for one in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value


def _messages(value: Any, name: str, where: str, reading: Reading) -> list[Message]:
    turns = _turns(value)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        problem = f"{name} in {where} is not a list of messages with role and content"
        raise OddRecordError(problem, "correct or remove this record")
    return [_message(turn, f"a message in {where}", reading) for turn in turns]


def _message(turn: dict[str, Any], where: str, reading: Reading) -> Message:
    by, says = ("from", "value") if turn.get("from") is not None else ("role", "content")
    says = next((name for name in (says, "content", "value", "text") if turn.get(name) is not None), says)
    name = _string(turn.get(by), by, where)
    calls = _tool_calls(turn, name, says, where)
    message: Message = {"role": _ROLES.get(name.lower(), without_surrogates(name)), "content": ""}
    if turn.get(says) is not None and not (name == "function_call" and calls):
        message["content"] = _content(turn[says], says, where, reading)
    elif not calls:
        raise OddRecordError(f"field {says!r} of {where} is missing", "correct or remove this record")
    if calls:
        message["tool_calls"] = calls
    return message | {key: without_surrogates(turn[key]) for key in _CARRIED if isinstance(turn.get(key), str)}


def _content(value: Any, name: str, where: str, reading: Reading) -> str:
    """Return the content of a message; of its parts those that are text, on lines of their own."""
    if not isinstance(value, list):
        return without_surrogates(_string(value, name, where))
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(without_surrogates(part))
        elif not isinstance(part, dict):
            raise OddRecordError(f"a part of {where} is {type(part).__name__}", "correct or remove this record")
        elif isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS:
            texts.append(without_surrogates(part["text"]))
        else:
            reading.leave_out_part(str(part.get("type", "a part of unknown type")), where)
    return "\n".join(texts)


def _tool_calls(turn: dict[str, Any], role: str, says: str, where: str) -> list[dict[str, Any]]:
    """Return the calls of tools in a message, with arguments as objects, as templates expect them."""
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if role == "function_call":
        calls = _json(turn.get(says))
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) and "name" in call for call in calls):
            return []  # the words of the call are the content
    calls = _json(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise OddRecordError(f"tool_calls of {where} is not a list of calls", "correct or remove this record")
    return [_tool_call(call, where) for call in calls]


def _tool_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise OddRecordError(f"a tool call of {where} has no name", "correct or remove this record")
    arguments = function.get("arguments", {})
    called = {"name": function["name"], "arguments": _json(arguments)}
    return {"type": "function", "function": called} | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _json(value: Any) -> Any:
    """Return what a JSON string holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _said(messages: list[Message]) -> str:
    """Return what is said and called in a conversation, joined by empty lines."""
    said = []
    for message in messages:
        calls = [
            json.dumps(call["function"], ensure_ascii=False, default=str) for call in message.get("tool_calls", [])
        ]
        said += [message["content"]] if message["content"] or not calls else []
        said += calls
    return without_surrogates(DOCUMENT_SEPARATOR.join(said))


def _string(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        problem = "missing" if value is None else f"{type(value).__name__} instead of a string"
        raise OddRecordError(f"field {name!r} of {where} is {problem}", "correct or remove this record")
    return value


def _unknown(where: str, record: dict[str, Any], needs: str) -> OddRecordError:
    empty = next((name for name in (*TEXT_FIELDS, *TURN_FIELDS) if name in record), None)
    if empty is not None and record[empty] is None:
        return OddRecordError(f"field {empty!r} of {where} is missing", "correct or remove this record")
    has = f"the fields {listed(list(record))}" if record else "no fields"
    return OddRecordError(f"{where} has {has}", f"{needs}, or name the field with FILE#FIELD")
