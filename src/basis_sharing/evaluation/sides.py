"""The two models of a comparison: loading them, what can be compared of them, running both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.errors import NumericalError, RecipeError, ResultError
from basis_sharing.evaluation.agreement import divergence, summarize
from basis_sharing.evaluation.perplexity import from_losses, load, prepare_text, window_logits, window_loss
from basis_sharing.evaluation.samples import continue_prompt
from basis_sharing.evaluation.verdict import Missing
from basis_sharing.results.comparison import Agreement, Comparison, Continuation, Limits
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import Progress, ProgressCallback


@dataclass(frozen=True)
class Side:
    """A loaded model."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        """Number of tokens the model predicts."""
        return int(self.model.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class ComparisonTask:
    """What is measured on the models, and how it is judged."""

    text: str
    windows: int | None
    length: int | None
    prompts: Sequence[str]
    new_tokens: int
    dtype: torch.dtype | None
    limits: Limits
    disagreements: int


def load_side(model: str | Path | Any, tokenizer: Any, dtype: torch.dtype | None) -> Side:
    """Return a model given by its place or in memory.

    Raises:
        ModelError: It cannot be loaded.
        RecipeError: It is in memory, without a tokenizer.
    """
    if isinstance(model, (str, Path)):
        return Side(str(model), *load(model, dtype))
    if tokenizer is None:
        raise RecipeError("the tokenizer of a model given in memory is missing: pass tokenizer=.")
    return Side(type(model).__name__, model, tokenizer)


def prepare_side(side: Side, task: ComparisonTask, length: int) -> EvaluationText:
    """Return the windows of the text in the tokens of one model."""
    return prepare_text(side.model, side.tokenizer, task.text, windows=task.windows, length=length)


def refuse_other_windows(text: EvaluationText, baseline: Comparison, source: str) -> None:
    """Make sure that a text is the one a baseline was measured on.

    Raises:
        ResultError: It is not.
    """
    if text.fingerprint != baseline.second.perplexity.fingerprint:
        raise ResultError(
            f"{text.source} does not give the tokens that {source} was measured on: the text or the model's tokenizer "
            "is another one; give the text of then with --text, or make a new baseline."
        )


def obstacles(
    first: Side, second: Side, texts: tuple[EvaluationText, EvaluationText]
) -> tuple[Missing, tuple[str, ...]]:
    """Return what cannot be compared and why, and the notes that a reader needs for the rest."""
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
            note += " Windows of as many tokens cover different stretches of the text: use all of it (no --windows)."
        return Missing(difference=reason, agreement=reason), (note,)
    if first.vocabulary != second.vocabulary:
        reason = f"the two models predict {first.vocabulary:,} and {second.vocabulary:,} tokens"
        return Missing(agreement=reason), (f"{reason}: divergence and agreement are left out.",)
    return Missing(), ()


@torch.no_grad()
def measure_together(
    first: Side, second: Side, text: EvaluationText, disagreements: int, progress: ProgressCallback
) -> tuple[tuple[Perplexity, Perplexity], Agreement]:
    """Run both models window by window, so that only the logits of one window are in memory."""
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
    """Let every model continue its prompts; one tuple per prompt, in the order of the models."""
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
