"""Sources of calibration and evaluation text: parsing their names and reading their text.

Imports neither torch nor transformers, so that a source can be checked before the heavy libraries are loaded.
"""

import difflib
import io
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from basis_sharing.calibration.python_docs import python_docs
from basis_sharing.calibration.readers import (
    DOCUMENT_SEPARATOR,
    RECORD_SUFFIXES,
    content_suffix,
    read_document,
    read_plain,
)
from basis_sharing.errors import CorpusError

Kind = Literal[
    "wikitext2", "wikitext2-rows", "c4", "text", "chat", "windows", "self", "python-docs", "python-docs:heldout"
]
Split = Literal["train", "test"]

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
_TEXT_SUFFIXES = (".txt", ".raw", ".md", ".tokens", ".utf8", *RECORD_SUFFIXES)
_WINDOW_SUFFIXES = (".npz", ".safetensors")

_C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"}
_C4_DOCUMENTS = {"train": 8000, "test": 1100}  # 1,100 is what GPTQ evaluates on

_AND = " + "


@dataclass(frozen=True)
class Source:
    """A parsed source of text.

    Attributes:
        kind: Kind of the source.
        path: The local file; None if the text comes from the hub, from Python's documentation or from the model.
        spec: The source as the user wrote it.
    """

    kind: Kind
    path: Path | None
    spec: str


def parse_source(spec: str) -> Source:
    """Parse the name of one source of text, without reading the file.

    Args:
        spec: ``python-docs``, ``python-docs:heldout``, ``self``, ``wikitext2``, ``wikitext2-rows`` or ``c4`` (from the
            hub, or from a file as ``wikitext2:FILE``), ``chat:FILE``, ``text:FILE``, ``windows:FILE``, or a file whose
            suffix determines the kind.

    Raises:
        CorpusError: The name is unknown, the file does not exist or is a folder, or its suffix is unknown.
    """
    if spec in _NAMES:
        return Source(_NAMES[spec], None, spec)
    prefix, colon, name = spec.partition(":")
    if colon and prefix in _PREFIXES:
        if not name:
            raise CorpusError(f"{spec!r} lacks a file: write {prefix}:FILE.")
        return Source(_PREFIXES[prefix], _existing_file(name), spec)
    if not spec or not os.path.exists(os.path.expanduser(spec)):
        raise CorpusError(_unknown(spec))
    path = _existing_file(spec)
    suffix = content_suffix(path)
    if suffix in _WINDOW_SUFFIXES:
        return Source("windows", path, spec)
    if suffix in _TEXT_SUFFIXES:
        return Source("text", path, spec)
    raise CorpusError(
        f"the name of {spec} does not tell what it holds: write text:{spec} for plain text, or windows:{spec} for "
        "token windows."
    )


def parse_mixture(spec: str) -> tuple[Source, ...]:
    """Parse one or several sources of text, separated by plus signs: ``A + B``.

    Raises:
        CorpusError: As :func:`parse_source`, for one of them.
    """
    return tuple(parse_source(part.strip()) for part in spec.split(_AND))


def read_text(source: Source, split: Split) -> str:
    """Read the text of a source.

    Args:
        source: A source of any kind but ``chat``, ``windows`` and ``self``.
        split: The split of a data set from the hub; ignored for local files.

    Returns:
        The text. WikiText-2 is the published file, or its rows joined by an empty line (``wikitext2-rows``); documents
        of C4 and of JSON files are joined by an empty line.

    Raises:
        CorpusError: The file cannot be read, is empty, damaged, not UTF-8 or not valid JSON; or the hub cannot be
            reached.
    """
    match source.kind:
        case "python-docs" | "python-docs:heldout":
            return python_docs(heldout=source.kind == "python-docs:heldout")
        case "wikitext2":
            if source.path is not None:
                return read_plain(source.path)
            # Empty rows of the hub's data set lack the single space that the published file has there.
            return "".join(row or " \n" for row in _hub_rows(source.kind, split))
        case "wikitext2-rows":
            rows = wikitext_rows(read_plain(source.path)) if source.path else _hub_rows(source.kind, split)
            return "\n\n".join(rows)
        case "c4" if source.path is None:
            return DOCUMENT_SEPARATOR.join(_hub_rows(source.kind, split))
        case "c4" | "text":
            assert source.path is not None
            return read_document(source.path)
        case _:
            raise ValueError(f"a source of kind {source.kind} has no text of its own")


def wikitext_rows(text: str) -> list[str]:
    """Return WikiText as the rows of the Hugging Face data set: lines with their line end, blank ones as ``""``."""
    return [line if line.strip() else "" for line in io.StringIO(text, newline=None)]


def _existing_file(name: str) -> Path:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        raise CorpusError(f"{name} is a folder: give one file in it.")
    if not os.path.exists(path):
        raise CorpusError(f"there is no file {name}: check the path.")
    return Path(path)


def _unknown(spec: str) -> str:
    prefix, colon, name = spec.partition(":")
    has_prefix = len(prefix) > 1 and bool(colon)  # one letter is a Windows drive
    looks_like_path = "/" in spec or "\\" in spec or content_suffix(Path(spec)) in _TEXT_SUFFIXES + _WINDOW_SUFFIXES
    if looks_like_path and not has_prefix:
        return f"there is no file {spec}: check the path."
    near = [f"{known}:{name}" for known in difflib.get_close_matches(prefix, _PREFIXES, n=1) if has_prefix]
    near = near or difflib.get_close_matches(spec, _NAMES, n=1)
    if near:
        return f"unknown text {spec!r}: did you mean {near[0]!r}?"
    return f"unknown text {spec!r}: give a file, or one of {', '.join(_NAMES)}."


def _hub_rows(kind: Kind, split: Split) -> list[str]:
    """Return the texts of a data set on the hub, one string per row."""
    remedy = f"install the extra (pip install 'basis-sharing[hub]'), or give a local file as {kind}:FILE."
    try:
        from datasets import load_dataset
    except ImportError:
        raise CorpusError(f"{kind} without a file is read from the Hugging Face hub by `datasets`: {remedy}") from None
    try:
        if kind == "c4":
            rows = load_dataset("allenai/c4", data_files={split: _C4_FILES[split]}, split=split, streaming=True)
            return [row["text"] for row in islice(rows, _C4_DOCUMENTS[split])]
        return list(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"])
    except Exception as error:  # the libraries underneath raise many kinds of errors; the remedy is the same for all
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise CorpusError(
            f"{kind} cannot be fetched from the Hugging Face hub ({reason}): check the network and {remedy}"
        ) from error
