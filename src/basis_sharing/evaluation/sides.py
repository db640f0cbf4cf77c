"""The two models of a comparison: loading, checking what can be compared, and running them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.errors import NumericalError, RecipeError, ResultError
from basis_sharing.evaluation.agreement import divergence, summarize
from basis_sharing.evaluation.measuring import Loading
from basis_sharing.evaluation.perplexity import from_losses, prepare_text, window_logits, window_loss
from basis_sharing.evaluation.samples import continue_prompt
from basis_sharing.evaluation.verdict import Missing
from basis_sharing.results.comparison import Agreement, Comparison, Continuation, Limits
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import Progress, ProgressCallback


@dataclass(frozen=True)
class Side:
    """One of the two models of a comparison, loaded."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        """Number of tokens the model predicts."""
        return int(self.model.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class ComparisonTask:
    """The settings of a comparison.

    Attributes:
        text: Source of the text.
        evaluation_windows: Use only its first windows; None: all.
        length: Tokens per window; None: 2048, or the limit of either model if that is smaller.
        prompts: Prompts that the models continue.
        new_tokens: Largest number of tokens to generate after each prompt.
        disagreements: Number of positions with the largest divergence to report.
        dtype: Name of the dtype that models are loaded in.
        limits: Limits on the differences of the models.
    """

    text: str
    evaluation_windows: int | None
    length: int | None
    prompts: Sequence[str]
    new_tokens: int
    disagreements: int
    dtype: str
    limits: Limits


@dataclass(frozen=True)
class Baseline:
    """A stored comparison.

    Attributes:
        source: Name of its file in messages.
        comparison: The comparison.
    """

    source: str
    comparison: Comparison

    @classmethod
    def of(cls, given: str | Path | Comparison) -> Self:
        """Return the baseline in a file or in memory.

        Raises:
            ResultError: The file cannot be read, or holds no comparison.
        """
        if isinstance(given, Comparison):
            return cls("the baseline", given)
        return cls(str(given), Comparison.read(Path(given)))


def load_side(model: str | Path | Any, loading: Loading) -> Side:
    """Return a model that is given by path or name, or in memory.

    Raises:
        ModelError: It cannot be loaded.
        CheckpointError: It is a compressed folder that is inconsistent or too new.
        RecipeError: It is in memory, without a tokenizer.
    """
    if isinstance(model, (str, Path)):
        return Side(str(model), *loading.load(model))
    if loading.tokenizer is None:
        raise RecipeError("the tokenizer of a model given in memory is missing: pass tokenizer=.")
    return Side(type(model).__name__, model, loading.tokenizer)


def prepare_side(side: Side, task: ComparisonTask, length: int) -> EvaluationText:
    """Return the windows of the text, tokenized for one model."""
    return prepare_text(side.model, side.tokenizer, task.text, windows=task.evaluation_windows, length=length)


def refuse_other_windows(text: EvaluationText, baseline: Baseline) -> None:
    """Make sure that a text has the tokens of a baseline.

    Raises:
        ResultError: The tokens differ.
    """
    if text.fingerprint != baseline.comparison.second.perplexity.fingerprint:
        raise ResultError(
            f"{text.source} does not give the tokens that {baseline.source} was measured on: the text or the model's "
            "tokenizer is another one; give the text of then with --text, or make a new baseline."
        )


def obstacles(
    first: Side, second: Side, texts: tuple[EvaluationText, EvaluationText]
) -> tuple[Missing, tuple[str, ...]]:
    """Return which measures are missing and why, and notes for the reader about the others."""
    reason = None
    if first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        sizes = f"{len(first.tokenizer):,} and {len(second.tokenizer):,} tokens"
        reason = f"the two models have different vocabularies ({sizes})"
    elif texts[0].fingerprint != texts[1].fingerprint:
        reason = "the two models' tokenizers turn the text into different tokens"
    if reason is not None:
        rest = "bits per byte and generations" if texts[0].bytes_per_token is not None else "only the generations"
        note = f"{reason}: {rest} are compared; perplexity per token, divergence and agreement are not comparable."
        if texts[0].bytes_per_token is not None:
            note += (
                " Windows of as many tokens cover different stretches of the text: use all of it (no "
                "--evaluation-windows)."
            )
        return Missing(difference=reason, agreement=reason), (note,)
    if first.vocabulary != second.vocabulary:
        reason = f"the two models predict {first.vocabulary:,} and {second.vocabulary:,} tokens"
        return Missing(agreement=reason), (f"{reason}: divergence and agreement are left out.",)
    return Missing(), ()


@torch.no_grad()
def measure_together(
    first: Side, second: Side, text: EvaluationText, disagreements: int, progress: ProgressCallback
) -> tuple[tuple[Perplexity, Perplexity], Agreement]:
    """Return the perplexities of both models and their agreement.

    The models run window by window, so that only the logits of one window are in memory.

    Raises:
        NumericalError: A model computes NaN or infinity; the message names it.
    """
    windows, losses = [], (list[float](), list[float]())
    for index in range(len(text.input_ids)):
        logits = window_logits(first.model, text, index), window_logits(second.model, text, index)
        for side, own, part in zip((first, second), losses, logits, strict=True):
            try:
                own.append(window_loss(part, text, index))
            except NumericalError as error:
                raise NumericalError(f"{side.name}: {error}") from None
        windows.append(divergence(*logits))
        if not windows[-1].kl.isfinite().all():
            raise NumericalError(
                f"the models' predictions on window {index + 1} of {text.source} have no finite KL divergence: one "
                "computes NaN or infinity; run both in float32 (--dtype float32)."
            )
        progress(Progress("comparing", index + 1, len(text.input_ids), "windows"))
    agreement = summarize(windows, text.input_ids, first.tokenizer, disagreements)
    one, other = (from_losses(own, text, side.model.dtype) for own, side in zip(losses, (first, second), strict=True))
    return (one, other), agreement


def write_continuations(
    sides: Sequence[Side], encoded: Sequence[Sequence[Tensor]], new_tokens: int, progress: ProgressCallback
) -> list[tuple[Continuation, ...]]:
    """Return the continuations of the prompts: one tuple per prompt, in the order of the models."""
    written = []
    prompts = list(zip(*encoded, strict=True))
    for done, prompt in enumerate(prompts, start=1):
        written.append(
            tuple(
                continue_prompt(side.model, side.tokenizer, ids, new_tokens)
                for side, ids in zip(sides, prompt, strict=True)
            )
        )
        progress(Progress("writing", done, len(prompts), "prompts"))
    return written
