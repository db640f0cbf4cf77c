"""Conversion of records of zero-shot tasks to examples with the fields that the harness's prompts use.

Every function returns one record as an example with the fields of the original data set. Those named ``published_*``
read re-published files, which are easily available; the others read and check the original fields.
"""

from dataclasses import dataclass
from typing import Any

from basis_sharing.errors import CorpusError

Example = dict[str, Any]

_LETTERS = "ABCDE"


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        where: Description of its location in the file, for messages.
        fields: Its fields.
    """

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """Return a field that is a string.

        Raises:
            CorpusError: The field is missing or something else.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"is {value!r} and not a string")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a field that is a list of at least two strings.

        Raises:
            CorpusError: The field is missing or something else.
        """
        value = self._value(name)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "is not a list of two or more strings")
        return value

    def index(self, name: str, below: int) -> int:
        """Return a field that is the index of a choice, a number or its digits.

        Raises:
            CorpusError: The field is missing, or no index of one of the choices.
        """
        value = self._value(name)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if not text.isdecimal() or int(text) >= below:
            raise self.wrong(name, f"is {value!r}, but a label from 0 to {below - 1} is needed")
        return int(text)

    def one_of(self, name: str, allowed: list[str]) -> str:
        """Return a field that is one of some strings.

        Raises:
            CorpusError: The field is missing or something else.
        """
        value = self.text(name)
        if value not in allowed:
            raise self.wrong(name, f"is {value!r}, but one of {', '.join(allowed)} is needed")
        return value

    def inner(self, name: str) -> "Record":
        """Return a field that is itself a record.

        Raises:
            CorpusError: The field is missing or something else.
        """
        value = self._value(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "is not an object with named fields")
        return Record(f"field {name!r} of {self.where}", value)

    def wrong(self, name: str, what: str) -> CorpusError:
        """Return the error for an invalid field; ``what`` says what is wrong."""
        return CorpusError(f"field {name!r} of {self.where} {what}: correct or remove this record.")

    def _value(self, name: str) -> Any:
        if self.fields.get(name) is None:
            raise self.wrong(name, "is missing")
        return self.fields[name]


def science(record: Record, question: str) -> Example:
    """Read ARC or OpenBookQA: a question, choices with labels, and the label of the answer."""
    choices = record.inner("choices")
    texts, labels = choices.texts("text"), choices.texts("label")
    if len(texts) != len(labels):
        raise record.wrong("choices", f"has {len(texts)} texts and {len(labels)} labels")
    return {
        question: record.text(question),
        "choices": {"text": texts, "label": labels},
        "answerKey": record.one_of("answerKey", labels),
    }


def published_science(record: Record, question: str) -> Example:
    """Read ARC or OpenBookQA as ``query`` (with the words of the prompt around it), ``choices`` and ``gold``."""
    texts = record.texts("choices")
    labels = list(_LETTERS[: len(texts)])
    return {
        question: _between("Question: ", record, "query", "\nAnswer:"),
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[record.index("gold", len(texts))],
    }


def winogrande(record: Record) -> Example:
    """Read WinoGrande: a sentence with a gap, two options, and ``"1"`` or ``"2"``."""
    if "_" not in record.text("sentence"):
        raise record.wrong("sentence", "has no gap _")
    fields = {name: record.text(name) for name in ("sentence", "option1", "option2")}
    return {**fields, "answer": record.one_of("answer", ["1", "2"])}


def hellaswag(record: Record) -> Example:
    """Read HellaSwag: the two halves of a context, its activity, four endings and a label."""
    endings = record.texts("endings")
    fields = {name: record.text(name) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**fields, "endings": endings, "label": str(record.index("label", len(endings)))}


def published_hellaswag(record: Record) -> Example:
    """Read HellaSwag with prompts that are already made: ``query``, ``choices``, ``gold``."""
    choices = record.texts("choices")
    return {"query": record.text("query"), "choices": choices, "label": str(record.index("gold", len(choices)))}


def piqa(record: Record) -> Example:
    """Read PIQA: a goal, two solutions and a label."""
    return {**{name: record.text(name) for name in ("goal", "sol1", "sol2")}, "label": record.index("label", 2)}


def mathqa(record: Record) -> Example:
    """Read MathQA: a problem, its options in one string, and the letter of the right one."""
    fields = {name: record.text(name) for name in ("Problem", "options")}
    return {**fields, "correct": record.one_of("correct", list("abcde"))}


def published_mathqa(record: Record) -> Example:
    """Read MathQA as an instruction with the options at its end, and a capital letter.

    The file has the letters a to f of all options in capitals, the original is in small letters throughout.
    """
    problem, options, choices = record.text("instruction").partition(" The options: ")
    if not options:
        raise record.wrong("instruction", "does not say 'The options: '")
    correct = record.one_of("answer", list(_LETTERS)).lower()
    return {"Problem": problem, "options": choices.lower(), "correct": correct}


def boolq(record: Record) -> Example:
    """Read BoolQ as SuperGLUE has it: a passage, a question without its mark, 0 for no and 1 for yes."""
    fields = {name: record.text(name) for name in ("passage", "question")}
    return {**fields, "label": record.index("label", 2)}


def published_boolq(record: Record) -> Example:
    """Read BoolQ as ``query`` (the prompt), ``choices`` yes and no in any order, and ``gold``."""
    passage, separator, question = record.text("query").rpartition("\nQuestion: ")
    if not separator or not question.endswith("?\nAnswer:"):
        raise record.wrong("query", "does not end in a question and 'Answer:'")
    choices = record.texts("choices")
    if sorted(choices) != ["no", "yes"]:
        raise record.wrong("choices", "are not yes and no")
    answer = choices[record.index("gold", 2)]
    return {"passage": passage, "question": question.removesuffix("?\nAnswer:"), "label": int(answer == "yes")}


def lambada(record: Record) -> Example:
    """Read LAMBADA: a text whose last word is to be guessed."""
    text = record.text("text")
    if " " not in text:
        raise record.wrong("text", "has only one word")
    return {"text": text}


def published_lambada(record: Record) -> Example:
    """Read LAMBADA as the context and its last word."""
    word = record.text("continuation")
    if not word or " " in word:
        raise record.wrong("continuation", f"is {word!r} and not one word")
    return {"text": f"{record.text('context')} {word}"}


def _between(before: str, record: Record, name: str, after: str) -> str:
    text = record.text(name)
    if not text.startswith(before) or not text.endswith(after):
        raise record.wrong(name, f"does not start with {before!r} and end with {after!r}")
    return text.removeprefix(before).removesuffix(after)
