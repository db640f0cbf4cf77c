"""Two models side by side: perplexity, agreement, what they write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from basis_sharing.calibration.corpora import parse_source
from basis_sharing.calibration.windows import window_length
from basis_sharing.evaluation.outcome import comparison_of
from basis_sharing.evaluation.paired import task_differences
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, measure
from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, encode_prompts
from basis_sharing.evaluation.sides import (
    ComparisonTask,
    Side,
    load_side,
    measure_together,
    obstacles,
    prepare_side,
    refuse_other_windows,
    write_continuations,
)
from basis_sharing.evaluation.tasks import evaluate_tasks
from basis_sharing.evaluation.verdict import Missing, refuse_unanswerable
from basis_sharing.results.comparison import Comparison, Generation, Limits, Measured
from basis_sharing.results.tasks import TaskResults
from basis_sharing.run.progress import ProgressCallback, silent, titled

DISAGREEMENTS = 10


def compare(
    a: str | Path | Any,
    b: str | Path | Any,
    *,
    text: str = DEFAULT_TEXT,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    limits: Limits | None = None,
    tokenizer: Any = None,
    windows: int | None = None,
    length: int | None = None,
    dtype: torch.dtype | None = None,
    new_tokens: int = NEW_TOKENS,
    disagreements: int = DISAGREEMENTS,
    tasks: Sequence[str] = (),
    task_data: Path | None = None,
    task_limit: int | None = None,
    task_cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> Comparison:
    """Compare two models, usually an original and its compressed form, on one text and the same prompts.

    Both are in memory at once, the logits of one window only. Models with different vocabularies are compared by bits
    per byte and by what they write.

    Args:
        a: The original: a folder, a GGUF file, a hub id, or a model in memory.
        b: The model that is judged, given in the same way.
        text: Source of the text, as for calibration.
        prompts: Prompts that both continue, greedily and without a chat template.
        limits: How far apart the models may be; None: the verdict only describes.
        tokenizer: The tokenizer of models given in memory.
        windows: Use only the first windows; None: all.
        length: Tokens per window; None: 2048, or the limit of either model where that is smaller.
        dtype: Dtype to load the models in; None: the checkpoint's own. Ignored for models given in memory.
        new_tokens: Most tokens to write after each prompt.
        disagreements: Number of positions to show where the models disagree most.
        tasks: Zero-shot tasks to score both on, see :func:`~basis_sharing.evaluation.tasks.evaluate_tasks`.
        task_data: Folder with their examples; None: the harness fetches them.
        task_limit: Use only the first examples of each task; None: all.
        task_cache: Folder that scores are kept in and taken from; None: none.
        progress: Receives one event per window and per prompt.

    Returns:
        What was measured, with the verdict and everything needed to check the second model again.

    Raises:
        ModelError: A model cannot be loaded.
        CorpusError: The text cannot be read or is shorter than one window.
        RecipeError: A prompt is too long, or a limit needs a number that these two models do not have.
        NumericalError: A model computes NaN or infinity.
    """
    task = ComparisonTask(text, windows, length, prompts, new_tokens, dtype, limits or Limits(), disagreements)
    missing_drift = Missing(drift="there is no baseline to drift from: give one with --baseline FILE")
    refuse_unanswerable(task.limits, missing_drift)
    parse_source(text)  # a mistyped name is found before two models are loaded
    scored = []
    for name, model in (("A", a), ("B", b)) if tasks else ():
        results = evaluate_tasks(
            model,
            tasks,
            tokenizer=tokenizer,
            data=task_data,
            limit=task_limit,
            dtype=dtype,
            cache=task_cache,
            progress=titled(progress, name),
        )
        scored.append(results)
    found = compare_sides(load_side(a, tokenizer, dtype), load_side(b, tokenizer, dtype), task, None, progress)
    if not scored:
        return found
    notes = dict.fromkeys((*found.notes, *_task_notes(*scored)))
    return found.model_copy(update={"tasks": task_differences(*scored), "notes": tuple(notes)})


def _task_notes(first: TaskResults, second: TaskResults) -> list[str]:
    """Return what has to be said about the tasks; what is true of one model only is said of that one."""
    a, b = first.all_notes, second.all_notes
    both = [note for note in a if note in b]
    only = [(name, note) for name, notes in (("A", a), ("B", b)) for note in notes if note not in both]
    return [*both, *(f"{name}: {note}" for name, note in only)]


def compare_sides(
    first: Side, second: Side, task: ComparisonTask, baseline: tuple[str, Comparison] | None, progress: ProgressCallback
) -> Comparison:
    """Compare two loaded models; with a baseline, on its windows only."""
    length = min(window_length(side.model.config, task.length) for side in (first, second))
    texts = prepare_side(first, task, length), prepare_side(second, task, length)
    if baseline is not None:
        refuse_other_windows(texts[1], baseline[1], baseline[0])
    missing, notes = obstacles(first, second, texts)
    refuse_unanswerable(task.limits, missing)
    encoded = [encode_prompts(side.model, side.tokenizer, task.prompts, task.new_tokens) for side in (first, second)]
    agreement = None
    if missing.agreement is None:
        measured, agreement = measure_together(first, second, texts[0], task.disagreements, progress)
    else:
        measured = (
            measure(first.model, texts[0], stage="measuring A", progress=progress),
            measure(second.model, texts[1], stage="measuring B", progress=progress),
        )
    written = write_continuations((first, second), encoded, task.new_tokens, progress)
    return comparison_of(
        (
            Measured(model=first.name, perplexity=measured[0]),
            Measured(model=second.name, perplexity=measured[1]),
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
