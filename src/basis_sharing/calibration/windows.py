"""Token windows from sources of text, for calibration and for evaluation."""

import zipfile
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from basis_sharing.calibration.chats import Chat, folded, without_surrogates
from basis_sharing.calibration.corpora import Source, parse_mixture, parse_source, read_conversations, read_text
from basis_sharing.calibration.data_sets import Split
from basis_sharing.calibration.left_out import OddRecordError, Reading
from basis_sharing.calibration.self_text import write_windows
from basis_sharing.errors import CorpusError, RecipeError
from basis_sharing.run.progress import ProgressCallback, silent

_ARRAY = "input_ids"
_ZIP_MAGIC = b"PK"
_OWN_WINDOWS = 256
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class TokenWindows:
    """Token windows to calibrate on.

    Attributes:
        input_ids: Token ids, int64, shape ``[windows, length]``.
        source: The source as the user wrote it.
        fingerprint: Hash of the shape and the ids.
        bos: Whether every window starts with the beginning-of-sequence token because the model needs it.
        notes: Sentences for the user.
    """

    input_ids: Tensor
    source: str
    fingerprint: str
    bos: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationText:
    """Consecutive token windows of a text to measure perplexity on.

    Attributes:
        input_ids: Token ids, int64, shape ``[windows, length]``, including the beginning-of-sequence token if ``bos``.
        bytes_per_token: UTF-8 bytes per token of the whole text; None for a file of token windows.
        source: The source as the user wrote it.
        fingerprint: Hash of the shape and the ids.
        tokens_total: Tokens of the whole text, including those after the last window.
        bos: Whether each window starts with an added beginning-of-sequence token.
        notes: Sentences for the user.
    """

    input_ids: Tensor
    bytes_per_token: float | None
    source: str
    fingerprint: str
    tokens_total: int
    bos: bool
    notes: tuple[str, ...] = ()


def calibration_windows(
    spec: str,
    *,
    tokenizer: Any,
    model: Any = None,
    windows: int | None,
    length: int,
    seed: int,
    vocab_size: int,
    bos: bool = False,
    progress: ProgressCallback = silent,
) -> TokenWindows:
    """Return calibration windows drawn from one source, or in equal numbers from several.

    A text is tokenized once, without special tokens, and cut into windows that do not overlap. Windows are drawn
    without replacement: those with the smallest ``blake2b("seed/index")``, so that a seed gives the same windows on
    every machine and fewer windows are a subset of more. They stay in the order of the text; those of several sources
    alternate.

    Args:
        spec: The sources, see :func:`~basis_sharing.calibration.corpora.parse_mixture`.
        tokenizer: The model's tokenizer.
        model: The model; needed for ``self`` only.
        windows: Number of windows; if the sources have fewer, all of them are used and a note is added. None: all
            windows (256 of ``self``).
        length: Tokens per window. A file of shorter windows is used unchanged, with a note.
        seed: Seed of the draw, and of the sampling of ``self``.
        vocab_size: Size of the model's vocabulary.
        bos: Whether each window is a beginning-of-sequence token and ``length - 1`` tokens of the text. A file of
            windows is used unchanged.
        progress: Receives the events of sampling from ``self``.

    Raises:
        CorpusError: A source is unknown or unreadable, shorter than one window, or has tokens outside the vocabulary;
            or there are fewer windows than sources, or the windows of the sources differ in length.
        NumericalError: The model computes NaN or infinity while it samples its own text.
    """
    first = _first_token(tokenizer, bos)
    sources = parse_mixture(spec)
    shares = [None if windows is None else len(range(i, windows, len(sources))) for i in range(len(sources))]
    if 0 in shares:
        raise CorpusError(f"{windows} windows cannot come from {len(sources)} sources: use more windows (--windows).")
    drawn: list[Tensor] = []
    notes: list[str] = []
    for source, share in zip(sources, shares, strict=True):
        more: tuple[str, ...] = ()
        if source.kind == "self":
            ids = write_windows(model, tokenizer, share or _OWN_WINDOWS, length, seed, progress)
        elif source.kind == "windows":
            ids, more = _stored_windows(source, share, length, vocab_size)
        else:
            ids, more = _drawn_windows(source, tokenizer, share, length, seed, vocab_size, first)
        drawn.append(ids)
        notes += more
    _check_one_length({ids.shape[1]: source.spec for source, ids in zip(sources, drawn, strict=True)})
    turns = sorted((place, which) for which, ids in enumerate(drawn) for place in range(len(ids)))
    ids = torch.stack([drawn[which][place] for place, which in turns])
    started = first is not None and bool((ids[:, 0] == first).all())
    return TokenWindows(ids, spec, fingerprint_ids(ids), started, tuple(notes))


def _check_one_length(sources: dict[int, str]) -> None:
    """Raise a CorpusError if ``sources`` (by the length of their windows) have windows of different lengths."""
    if len(sources) > 1:
        raise CorpusError(
            f"the windows of {sources[min(sources)]} have {min(sources)} tokens, those of the other sources "
            f"{max(sources)}: set --length {min(sources)}."
        )


def _drawn_windows(
    source: Source, tokenizer: Any, windows: int | None, length: int, seed: int, vocab_size: int, first: int | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return windows drawn from a source of text, and notes."""
    text, notes = _text(source, "train", tokenizer)
    cut = _cut(_tokenize(text, tokenizer, source.spec, vocab_size), length, source.spec, first)
    notes += _few(len(cut), windows, length, source.spec) + _unknown_words(source, text)
    return cut[_draw(len(cut), len(cut) if windows is None else min(windows, len(cut)), seed)], notes


def evaluation_windows(
    spec: str, *, tokenizer: Any, windows: int | None, length: int, vocab_size: int, bos: bool
) -> EvaluationText:
    """Return the consecutive windows of a text to measure perplexity on.

    The text is tokenized once, without special tokens; windows do not overlap, and the last, partial one is dropped.

    Args:
        spec: The source, see :func:`~basis_sharing.calibration.corpora.parse_source`; not ``self``.
        tokenizer: The model's tokenizer.
        windows: Number of windows, counted from the beginning of the text; None: all.
        length: Tokens per window. A file of shorter windows is used unchanged, with a note.
        vocab_size: Size of the model's vocabulary.
        bos: Whether each window is a beginning-of-sequence token and ``length - 1`` tokens of the text.

    Raises:
        CorpusError: The source is unknown or unreadable, shorter than one window, or has tokens outside the vocabulary.
    """
    source = parse_source(spec)
    if source.kind == "self":
        raise CorpusError("self cannot be evaluated on, the model would judge its own words: give another text.")
    if source.kind == "windows":
        stored, notes = _stored_windows(source, windows, length, vocab_size)
        return EvaluationText(stored, None, spec, fingerprint_ids(stored), stored.numel(), False, notes)
    first = _first_token(tokenizer, bos)
    text, notes = _text(source, "test", tokenizer)
    tokens = _tokenize(text, tokenizer, spec, vocab_size)
    ids = _cut(tokens, length, spec, first)[:windows]
    notes += _few(len(ids), windows, length, spec) + _unknown_words(source, text)
    bytes_per_token = len(text.encode()) / len(tokens)
    return EvaluationText(ids, bytes_per_token, spec, fingerprint_ids(ids), len(tokens), bos, notes)


def window_length(config: Any, length: int | None) -> int:
    """Return the tokens per window: ``length`` if given, else 2048 or the model's limit, whichever is smaller.

    Raises:
        RecipeError: ``length`` exceeds the model's limit.
    """
    limit = max(0, getattr(config.get_text_config(), "max_position_embeddings", None) or 0)  # -1: none, in XLNet
    if length is None:
        return min(_DEFAULT_LENGTH, limit) if limit else _DEFAULT_LENGTH
    if limit and length > limit:
        raise RecipeError(f"--length {length} is more than the {limit} tokens this model can read at once.")
    return length


def fingerprint_ids(input_ids: Tensor) -> str:
    """Return a hash of the shape and the ids of token windows, 32 hexadecimal digits."""
    digest = blake2b(repr(tuple(input_ids.shape)).encode(), digest_size=16)
    digest.update(input_ids.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _text(source: Source, split: Split, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Return the text of a source, and notes about what was left out."""
    notes: list[str] = []
    if source.kind != "chat":
        return read_text(source, split, notes), tuple(notes)
    if not tokenizer.chat_template:
        raise CorpusError(
            f"the tokenizer has no chat template, which {source.spec} needs: give the file without chat: to use its "
            "plain text."
        )

    def render(chat: Chat, reading: Reading) -> str:
        try:
            return _templated(tokenizer, chat)
        except OddRecordError:
            without_system = folded(chat)
            if without_system is None:
                raise
            text = _templated(tokenizer, without_system)
            reading.fold_system(chat.where)
            return text

    return read_conversations(source, split, render, notes), tuple(notes)


def _templated(tokenizer: Any, chat: Chat) -> str:
    """Return a chat as the tokenizer's template writes it.

    Raises:
        OddRecordError: The template refuses it.
    """
    tools = {"tools": chat.tools} if chat.tools else {}
    try:
        text: str = tokenizer.apply_chat_template(chat.messages, tokenize=False, **tools)
    except Exception as error:  # a template is a program of the model's authors, and may raise anything
        raise OddRecordError(
            f"the chat template does not accept {chat.where} ({_first_line(error)})", "correct or remove this record"
        ) from error
    return without_surrogates(text)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tokenize(text: str, tokenizer: Any, spec: str, vocab_size: int) -> Tensor:
    """Return the ids of a text, int64, shape ``[tokens]``."""
    # verbose=False: suppress the warning that the text is longer than the model's context.
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise CorpusError(
            f"the tokenizer writes id {int(tokens.max())} in {spec}, but the model knows {vocab_size} ids: use the "
            "model's own tokenizer."
        )
    return tokens


def _first_token(tokenizer: Any, bos: bool) -> int | None:
    """Return the beginning-of-sequence token if ``bos``, else None."""
    if not bos:
        return None
    if tokenizer.bos_token_id is None:
        raise CorpusError("the model needs a beginning-of-sequence token, but its tokenizer has none: set bos_token.")
    return int(tokenizer.bos_token_id)


def _cut(tokens: Tensor, length: int, spec: str, first: int | None) -> Tensor:
    """Return all complete windows of a text, shape ``[windows, length]``, each starting with ``first`` if given."""
    length -= first is not None
    count = len(tokens) // length
    if not count:
        raise CorpusError(
            f"{spec} has {len(tokens)} tokens, but one window needs {length}: give a longer text, or shorter windows "
            "with --length."
        )
    ids = tokens[: count * length].view(count, length)
    return ids if first is None else torch.cat([ids.new_full((count, 1), first), ids], dim=1)


def _draw(available: int, windows: int, seed: int) -> list[int]:
    def rank(index: int) -> bytes:
        return blake2b(f"{seed}/{index}".encode(), digest_size=16).digest()

    return sorted(sorted(range(available), key=rank)[:windows])


def _few(available: int, requested: int | None, length: int, spec: str) -> tuple[str, ...]:
    """Return a note if a source has fewer windows than requested, else nothing."""
    if requested is None or available >= requested:
        return ()
    return (f"{spec} has only {available} of the {requested} windows of {length} tokens asked for; all of it is used.",)


def _unknown_words(source: Source, text: str) -> tuple[str, ...]:
    if not source.kind.startswith("wikitext2") or " <unk> " not in text:
        return ()
    return (
        f"{source.spec} is the tokenized WikiText-2, with <unk> for rare words; published results use the raw one.",
    )


def _stored_windows(
    source: Source, windows: int | None, length: int, vocab_size: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the first windows of a file of token windows, and notes."""
    assert source.path is not None
    stored = _load_windows(source.path)
    if stored.ndim != 2 or stored.dtype.kind not in "iu" or stored.shape[0] < 1 or stored.shape[1] < 2:
        raise CorpusError(
            f"{_ARRAY} of {source.path} is {stored.dtype} of shape {list(stored.shape)}: token windows are integers of "
            "shape [windows, length]."
        )
    ids = torch.from_numpy(stored.astype(np.int64))
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise CorpusError(
            f"{source.path} has token id {low if low < 0 else high}, but the model knows ids 0 to {vocab_size - 1}: "
            "use windows made with the model's own tokenizer."
        )
    if ids.shape[1] > length:
        raise CorpusError(
            f"the windows of {source.path} have {ids.shape[1]} tokens, more than {length}: set --length "
            f"{ids.shape[1]} if the model can read that many."
        )
    notes = _few(len(ids), windows, ids.shape[1], source.spec)
    if ids.shape[1] < length:
        notes += (f"the windows of {source.spec} have {ids.shape[1]} tokens, not {length}; they are used as they are.",)
    return ids[:windows], notes


def _load_windows(path: Path) -> "np.ndarray[Any, Any]":
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        if is_zip:
            with np.load(path, allow_pickle=False) as archive:
                return _named(archive, archive.files, path)
        with safe_open(path, framework="np") as archive:
            return _named(archive, list(archive.keys()), path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from error
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError) as error:
        raise CorpusError(f"{path} is not a readable .npz or .safetensors file ({error}): make it again.") from error


def _named(archive: Any, names: list[str], path: Path) -> "np.ndarray[Any, Any]":
    if _ARRAY not in names:
        raise CorpusError(f"{path} has no array {_ARRAY}, only {', '.join(names) or 'nothing'}: name it {_ARRAY}.")
    array: np.ndarray[Any, Any] = archive.get_tensor(_ARRAY) if hasattr(archive, "get_tensor") else archive[_ARRAY]
    return array
