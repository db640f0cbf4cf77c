"""Comparison of two loaded models, or of one model with a stored comparison."""

from collections.abc import Sequence

from torch import Tensor

from basis_sharing.calibration.windows import EvaluationText, window_length
from basis_sharing.evaluation.assembly import comparison_of
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.evaluation.samples import encode_prompts
from basis_sharing.evaluation.sides import (
    Baseline,
    ComparisonTask,
    Side,
    measure_together,
    obstacles,
    prepare_side,
    refuse_other_windows,
    write_continuations,
)
from basis_sharing.evaluation.verdict import Missing, refuse_unanswerable
from basis_sharing.results.comparison import Agreement, Comparison, Generation, Measured
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import ProgressCallback


def compare_sides(
    first: Side, second: Side, task: ComparisonTask, baseline: Baseline | None, progress: ProgressCallback
) -> Comparison:
    """Return the comparison of two loaded models.

    Args:
        first: The original.
        second: The model to judge.
        task: The settings of the measurements, and the limits.
        baseline: An earlier comparison of the two, which must have the same windows; None: this is the first.
        progress: Receives one event per window and per prompt.

    Raises:
        CorpusError: The text cannot be read or is shorter than one window.
        ResultError: The text or the tokenizer is not that of the baseline.
        RecipeError: A prompt is too long, or a limit cannot be judged for these two models.
        NumericalError: A model computes NaN or infinity.
    """
    length = min(window_length(side.model.config, task.length) for side in (first, second))
    texts = prepare_side(first, task, length), prepare_side(second, task, length)
    if baseline is not None:
        refuse_other_windows(texts[1], baseline)
    missing, notes = obstacles(first, second, texts)
    refuse_unanswerable(task.limits, missing)
    encoded = [_encode(side, task) for side in (first, second)]
    perplexities, agreement = _measure_both(first, second, texts, task, missing, progress)
    written = write_continuations((first, second), encoded, task.new_tokens, progress)
    return comparison_of(
        (
            Measured(model=first.name, perplexity=perplexities[0]),
            Measured(model=second.name, perplexity=perplexities[1]),
        ),
        paired=missing.difference is None,
        agreement=agreement,
        generations=tuple(
            Generation(prompt=prompt, first=one, second=other)
            for prompt, (one, other) in zip(task.prompts, written, strict=True)
        ),
        task=task,
        baseline=baseline,
        first_is_stored=False,
        notes=notes,
    )


def compare_with_stored(
    side: Side, task: ComparisonTask, baseline: Baseline, notes: tuple[str, ...], progress: ProgressCallback
) -> Comparison:
    """Return a comparison with a new measurement of the second model and the stored results of the first.

    Args:
        side: The model to judge.
        task: The settings of the measurements, as for the baseline, and the limits.
        baseline: The stored comparison.
        notes: Notes for the reader.
        progress: Receives one event per window and per prompt.

    Raises:
        CorpusError: The text cannot be read or is shorter than one window.
        ResultError: The text or the tokenizer is not that of the baseline.
        RecipeError: A prompt is too long.
        NumericalError: The model computes NaN or infinity.
    """
    stored = baseline.comparison
    prepared = prepare_side(side, task, window_length(side.model.config, task.length))
    refuse_other_windows(prepared, baseline)
    encoded = _encode(side, task)
    now = measure(side.model, prepared, stage="measuring again", progress=progress)
    written = write_continuations((side,), (encoded,), task.new_tokens, progress)
    return comparison_of(
        (stored.first, Measured(model=side.name, perplexity=now)),
        paired=stored.difference is not None,
        agreement=None,
        generations=tuple(
            Generation(prompt=then.prompt, first=then.first, second=second)
            for then, (second,) in zip(stored.generations, written, strict=True)
        ),
        task=task,
        baseline=baseline,
        first_is_stored=True,
        notes=notes,
    )


def _encode(side: Side, task: ComparisonTask) -> Sequence[Tensor]:
    return encode_prompts(side.model, side.tokenizer, task.prompts, task.new_tokens)


def _measure_both(
    first: Side,
    second: Side,
    texts: tuple[EvaluationText, EvaluationText],
    task: ComparisonTask,
    missing: Missing,
    progress: ProgressCallback,
) -> tuple[tuple[Perplexity, Perplexity], Agreement | None]:
    """Return both perplexities, and the agreement; None if the predictions cannot be compared."""
    if missing.agreement is None:
        return measure_together(first, second, texts[0], task.disagreements, progress)
    one = measure(first.model, texts[0], stage="measuring A", progress=progress)
    other = measure(second.model, texts[1], stage="measuring B", progress=progress)
    return (one, other), None
