"""A model without a tokenizer, or with one that cannot be read here: the error says what is missing."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from basis_sharing.errors import ModelError
from basis_sharing.models.source import load_tokenizer, resolve
from pico import save_pico

PIECES = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


def without(folder: Path, tokenizer_class: str | None) -> Path:
    save_pico("llama", folder)
    for file in folder.glob("token*"):
        file.unlink()
    if tokenizer_class is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    return folder


@pytest.mark.parametrize("tokenizer_class", [None, "LlamaTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_no_vocabulary(tokenizer_class: str | None, tmp_path: Path) -> None:
    folder = without(tmp_path / "model", tokenizer_class)  # transformers makes some of them, without any tokens
    with pytest.raises(ModelError, match=r"has no tokenizer: copy tokenizer\.json and tokenizer_config\.json"):
        load_tokenizer(resolve(folder))


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_pieces_that_nothing_here_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = without(tmp_path / "model", "LlamaTokenizer" if name == "tokenizer.model" else "T5Tokenizer")
    (folder / name).write_bytes(PIECES)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # a tool of the developers' environment brings it
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sentencepiece" else found(name, *rest)
    )
    with pytest.raises(ModelError, match=rf"the SentencePiece model {name}: .*pip install sentencepiece"):
        load_tokenizer(resolve(folder))
