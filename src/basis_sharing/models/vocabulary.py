"""The files of a tokenizer, and what is missing when it cannot be loaded."""

import importlib.util
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from basis_sharing.errors import ModelError
from basis_sharing.models.file_checks import check_file, readable

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@readable
def check_tokenizer_files(folder: Path) -> None:
    """Check that the tokenizer files of a folder have content of their own.

    Raises:
        ModelError: One is a link to nothing, empty, or a pointer of Git LFS.
    """
    for pattern in (*_VOCABULARIES, *_SETTINGS):
        for file in folder.glob(pattern):
            check_file(file)


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that transformers made without a vocabulary, for which every text is empty.

    Raises:
        ModelError: It has no tokens but the special ones.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise no_tokenizer(name)


def refuse_without_vocabulary(name: str, folder: Path) -> None:
    """Say what the folder of a tokenizer that cannot be loaded lacks: files, or the package that reads them.

    Raises:
        ModelError: It lacks them.
    """
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise no_tokenizer(name)
    pieces = next((piece for piece in _PIECES if (folder / piece).is_file()), None)
    if pieces and not (folder / "tokenizer.json").is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise ModelError(
            f"The tokenizer of {name} is the SentencePiece model {pieces}: install what reads it with pip install "
            "sentencepiece protobuf, or add the tokenizer.json of its family."
        )


def no_tokenizer(name: str) -> ModelError:
    """Return the error for a model without tokenizer."""
    return ModelError(
        f"{name} has no tokenizer: copy tokenizer.json and tokenizer_config.json, or tokenizer.model, from the model "
        "it was made of."
    )
