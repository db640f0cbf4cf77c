"""The second model of a stored comparison again, later: has it drifted?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from basis_sharing.calibration.windows import window_length
from basis_sharing.evaluation.outcome import comparison_of
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.evaluation.samples import encode_prompts
from basis_sharing.evaluation.sides import (
    ComparisonTask,
    load_side,
    prepare_side,
    refuse_other_windows,
    write_continuations,
)
from basis_sharing.evaluation.verdict import Missing, refuse_unanswerable
from basis_sharing.models.source import named_dtype
from basis_sharing.results.comparison import Comparison, Generation, Limits, Measured
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.verbs.compare import DISAGREEMENTS, compare_sides

_ONE_MODEL = "the first model was not given: give both models beside the baseline"


def recheck(
    b: str | Path | Any,
    baseline: Comparison,
    *,
    original: str | Path | Any = None,
    source: str = "the baseline",
    text: str | None = None,
    limits: Limits | None = None,
    tokenizer: Any = None,
    disagreements: int = DISAGREEMENTS,
    progress: ProgressCallback = silent,
) -> Comparison:
    """Measure the second model of a stored comparison again, on the same windows and prompts.

    Args:
        b: The model that is judged.
        baseline: The stored comparison.
        original: The first model; None: its stored numbers are used, and agreement is left out.
        source: Where the baseline was read; used in messages.
        text: Source of the text; None: as the baseline names it. It must give the same tokens.
        limits: How far apart the models may be; None: those of the baseline that can be judged.
        tokenizer: The tokenizer of models given in memory.
        disagreements: Number of positions to show where the models disagree most.
        progress: Receives one event per window and per prompt.

    Returns:
        A comparison with its ``drift``.

    Raises:
        ModelError: A model cannot be loaded.
        CorpusError: The text cannot be read or is shorter than one window.
        ResultError: The text or the tokenizer is not that of the baseline.
        RecipeError: A limit needs a number that this check does not have.
        NumericalError: A model computes NaN or infinity.
    """
    stored = baseline.second.perplexity
    task = ComparisonTask(
        text=stored.text if text is None else text,
        windows=stored.windows,
        length=stored.length,
        prompts=[generation.prompt for generation in baseline.generations],
        new_tokens=baseline.new_tokens,
        dtype=named_dtype(baseline.dtype),
        limits=limits or baseline.limits,
        disagreements=disagreements,
    )
    if original is not None:
        sides = load_side(original, tokenizer, task.dtype), load_side(b, tokenizer, task.dtype)
        return compare_sides(*sides, task, (source, baseline), progress)
    notes: tuple[str, ...] = ()
    missing = Missing(
        difference=None if baseline.difference else f"{source} holds no comparable perplexities", agreement=_ONE_MODEL
    )
    if limits is None:
        kept = task.limits.model_copy(update={"max_kl": None, "min_agreement": None})
        if kept != task.limits:
            notes = (f"the limits of {source} on divergence and agreement need both models and were not judged.",)
        task = replace(task, limits=kept)
    refuse_unanswerable(task.limits, missing)
    side = load_side(b, tokenizer, task.dtype)
    prepared = prepare_side(side, task, window_length(side.model.config, task.length))
    refuse_other_windows(prepared, baseline, source)
    encoded = encode_prompts(side.model, side.tokenizer, task.prompts, task.new_tokens)
    now = measure(side.model, prepared, stage="measuring again", progress=progress)
    written = write_continuations((side,), (encoded,), task.new_tokens, progress)
    generations = tuple(
        Generation(prompt=then.prompt, first=then.first, second=second)
        for then, (second,) in zip(baseline.generations, written, strict=True)
    )
    return comparison_of(
        (baseline.first, Measured(model=side.name, perplexity=now)),
        paired=baseline.difference is not None,
        agreement=None,
        generations=generations,
        task=task,
        baseline=(source, baseline),
        first_is_stored=True,
        notes=notes,
    )
