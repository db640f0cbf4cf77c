"""Chats: the fields that people use, tools, pictures, roles that a template refuses."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.calibration.chats import Chat
from basis_sharing.calibration.corpora import parse_source, read_conversations, read_text
from basis_sharing.calibration.left_out import Reading
from basis_sharing.calibration.windows import evaluation_windows
from basis_sharing.errors import CorpusError
from pico import VOCAB, pico_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"

USER = {"role": "user", "content": "Hello?"}
ASSISTANT = {"role": "assistant", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be kind."}
ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def chats(spec: object, notes: list[str] | None = None) -> list[Chat]:
    found = []

    def render(chat: Chat, _: Reading) -> str:
        found.append(chat)
        return "."

    read_conversations(parse_source(f"chat:{spec}"), "train", render, [] if notes is None else notes)
    return found


def said(chat: Chat) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in chat.messages]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"messages": [USER, ASSISTANT]}, [("user", "Hello?"), ("assistant", "Hi.")]),
        ([USER, ASSISTANT], [("user", "Hello?"), ("assistant", "Hi.")]),
        ({"conversation": [USER, ASSISTANT]}, [("user", "Hello?"), ("assistant", "Hi.")]),
        ({"messages": json.dumps([USER, ASSISTANT])}, [("user", "Hello?"), ("assistant", "Hi.")]),
        ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, [("user", "a"), ("assistant", "b")]),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}]},
            [("system", "s"), ("user", "a")],
        ),
        (
            {"conversations": [{"from": "Human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        ({"instruction": "a", "input": "b", "output": "c"}, [("user", "a\n\nb"), ("assistant", "c")]),
        ({"instruction": "a", "context": "", "response": "c"}, [("user", "a"), ("assistant", "c")]),
        ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [("user", "Hello?"), ("assistant", "Hi.")]),
        ({"prompt": "a", "chosen": [USER, ASSISTANT], "rejected": []}, [("user", "a"), ("assistant", "Hi.")]),
        ({"question": "a", "answer": "b"}, [("user", "a"), ("assistant", "b")]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            [("user", "a\nb")],
        ),
        ({"messages": [{"role": "user", "content": "a\ud83d"}]}, [("user", "a?")]),
        ({"text": None, "messages": [USER]}, [("user", "Hello?")]),
    ],
)
def test_fields_of_chats(tmp_path: Path, record: object, turns: object) -> None:
    (chat,) = chats(jsonl(tmp_path / "a.jsonl", record))
    assert said(chat) == turns


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
    ],
)
def test_calls_of_tools_reach_the_template_as_objects(tmp_path: Path, turn: object) -> None:
    answer = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"}
    path = jsonl(tmp_path / "a.jsonl", {"messages": [USER, turn, answer, ASSISTANT], "tools": [TOOL]})
    (chat,) = chats(path)
    assert chat.tools == [TOOL]
    (call,) = chat.messages[1]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert said(chat)[1:3] == [("assistant", ""), ("tool", "rain")]
    assert chat.messages[2]["tool_call_id"] == "c1"
    plain = read_text(parse_source(str(path)), "train")
    assert plain == f"Hello?\n\n{json.dumps({'name': 'weather', 'arguments': ARGUMENTS})}\n\nrain\n\nHi."


def test_pictures_are_counted_and_the_words_beside_them_are_read(tmp_path: Path) -> None:
    mixed = {"role": "user", "content": [PICTURE, {"type": "text", "text": "What is this?"}]}
    alone = {"role": "user", "content": [PICTURE]}
    notes: list[str] = []
    path = jsonl(tmp_path / "a.jsonl", {"messages": [mixed, ASSISTANT]}, {"messages": [alone, ASSISTANT]})
    found = chats(path, notes)
    assert [said(chat)[0] for chat in found] == [("user", "What is this?"), ("user", "")]
    assert notes == [
        f"2 parts of messages in chat:{path} are not text and left out; the first: image_url in a message in line 1 of "
        f"{path}."
    ]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": "a"}, "messages in line 2 of {path} is not a list of messages with role and content"),
        ({"messages": []}, "is not a list of messages"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "field 'content' of a message in line 2 of {path} is missing",
        ),
        ({"messages": [{"content": "a"}]}, "field 'role' of a message in line 2 of {path} is missing"),
        ({"messages": [{"role": "user", "content": 1}]}, "is int instead of a string"),
        ({"messages": [{"role": "user", "content": [1]}]}, "a part of a message in line 2 of {path} is int"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "the messages in line 2 of {path} are empty"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "a tool call of a message"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "is not a list of calls"),
        ({"text": "a"}, "line 2 of {path} has the fields text"),
        ({"instruction": 1, "output": "b"}, "field 'instruction' of line 2 of {path} is int instead of a string"),
    ],
)
def test_one_odd_chat_is_left_out_and_named(tmp_path: Path, record: object, says: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": [USER, ASSISTANT]}, record)
    notes: list[str] = []
    assert len(chats(path, notes)) == 1
    assert notes[0].startswith(f"1 of the 2 records of chat:{path} is left out; ")
    assert says.format(path=path) in notes[0]
    with pytest.raises(CorpusError) as caught:
        chats(jsonl(path, record))
    assert says.format(path=path).replace("line 2", "line 1") in str(caught.value)


def test_plain_documents_are_no_conversations(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    with pytest.raises(CorpusError, match=r"has the fields text: a chat needs messages.*\(2 of the 2 records"):
        chats(path)


def test_a_column_holds_the_chat(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": "x", "turns": [USER, ASSISTANT], "words": "a"})
    assert said(chats(f"{path}#turns")[0]) == [("user", "Hello?"), ("assistant", "Hi.")]
    with pytest.raises(CorpusError, match=r"words in line 1 of .* is not a list of messages"):
        chats(f"{path}#words")
    with pytest.raises(CorpusError, match=r"line 1 of .* has no column 'turn': name one of messages, turns, words"):
        chats(f"{path}#turn")


# Templates

STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception(m.role ~ ' is not\nknown') }}{% endif %}{{ m.role[0] ~ m.content }}|{% endfor %}"
)


def templated(path: Path, template: str) -> tuple[str, tuple[str, ...]]:
    tokenizer: Any = pico_tokenizer()
    tokenizer.chat_template = template
    text = evaluation_windows(f"chat:{path}", tokenizer=tokenizer, windows=None, length=2, vocab_size=VOCAB, bos=False)
    return tokenizer.decode(text.input_ids.flatten()), text.notes


def test_a_system_message_that_the_template_refuses_goes_to_the_user(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": [SYSTEM, USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]})
    text, notes = templated(path, STRICT)
    assert text == "uBe kind.\n\nHello?|aHi.|uHello?|aHi.|"
    refuses = "the chat template refuses system messages"
    assert notes == (f"{refuses}: 1 of chat:{path} is put in front of the first message of the user.",)


def test_chats_that_the_template_refuses_are_left_out(tmp_path: Path) -> None:
    tool = {"messages": [SYSTEM, USER, {"role": "tool", "content": "rain"}]}
    good = {"messages": [USER, ASSISTANT]}
    text, notes = templated(jsonl(tmp_path / "a.jsonl", tool, good), STRICT)
    assert text == "uHello?|aHi."  # and what is less than a window
    assert "the chat template does not accept line 1 of" in notes[0]
    assert notes[0].endswith("(tool is not).")
    with pytest.raises(CorpusError, match=r"does not accept line 1 of .*a.jsonl \(tool is not\): correct or remove"):
        templated(jsonl(tmp_path / "a.jsonl", tool), STRICT)


@pytest.mark.parametrize("template", ["{{ messages[0].content + 1 }}", "{{ 1 / 0 }}", "{% if %}", "{{ messages.a.b }}"])
def test_templates_that_fail_are_answered_in_a_sentence(tmp_path: Path, template: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": [USER]})
    with pytest.raises(CorpusError, match="the chat template does not accept line 1 of"):
        templated(path, template)


def test_tools_are_described_to_the_template(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": [USER], "tools": [TOOL]})
    assert templated(path, "{{ tools[0].function.name }}|")[0] == "weather|"


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
def test_real_conversations() -> None:
    path = DATA / "calibration" / "alpaca_random_9k.json.gz"
    notes: list[str] = []
    assert len(chats(path, notes)) == len(json.loads(gzip.decompress(path.read_bytes()))) == 9229
    assert notes == []
