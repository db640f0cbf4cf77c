"""Tables of accuracy on zero-shot tasks: of one model, and of two models on the same prompts."""

import math
from collections.abc import Sequence

from basis_sharing.reports.table import Table, columns
from basis_sharing.reports.tables.cells import NOTHING, noted, number, points
from basis_sharing.results.comparison import TaskDifference
from basis_sharing.results.paired import task_difference
from basis_sharing.results.tasks import TaskResults, TaskScore

PAIRED = (
    "The difference is paired, example by example, where both models read the same prompts; p: how likely so uneven a "
    "split of the disagreements is between equally good models."
)


def scores_table(results: TaskResults) -> Table:
    """Return the scores of a model on each task, and the mean accuracy."""
    rows = tuple(
        (
            score.task,
            points(score.accuracy, score.accuracy_error, digits=2),
            points(score.normalized_accuracy, score.normalized_accuracy_error, digits=2),
            f"{score.examples:,}",
            score.split,
            score.version,
            score.prompt_fingerprint[:8],
        )
        for score in results.scores
    )
    return Table(
        f"Zero-shot accuracy of {results.model}, % +- standard error",
        columns("task", "accuracy", "normalized", "examples", "split", "version", "prompts"),
        rows,
        (f"dtype {results.dtype}; {_harness([results])}.", *noted(results.all_notes)),
        footer=("mean", _mean(results), "", "", "", "", "") if len(rows) > 1 else (),
    )


def scores_pairs_table(before: Sequence[TaskResults], after: Sequence[TaskResults]) -> Table | None:
    """Return the scores of the original and of the compressed model, task by task; None if there are none."""
    old = {score.task: score for results in before for score in results.scores}
    new = {score.task: score for results in after for score in results.scores}
    if not old and not new:
        return None
    runs = [*before, *after]
    notes = tuple(dict.fromkeys(note for run in runs for note in run.all_notes))
    head = ("task", "examples", "original", "compressed", "difference, in points", "only original right")
    return Table(
        "Accuracy on tasks, % +- standard error",
        columns(*head, "only compressed right", "p (paired)"),
        tuple(_row(task, old.get(task), new.get(task)) for task in dict.fromkeys([*old, *new])),
        (f"{_harness(runs)}.", PAIRED, *noted(notes)),
    )


def difference_cells(task: TaskDifference) -> tuple[str, str, str, str]:
    """Return the difference in points, the numbers of examples that only one model answers right, and the p-value."""
    paired, difference = task.paired, task.second - task.first
    if paired is None:
        return points(difference, None, sign="+"), NOTHING, NOTHING, NOTHING
    shown = points(difference, paired.standard_error, sign="+")
    return shown, f"{paired.only_first:,}", f"{paired.only_second:,}", number(paired.p_value, ".3f")


def _row(task: str, before: TaskScore | None, after: TaskScore | None) -> tuple[str, ...]:
    score = after or before
    assert score is not None
    return (
        f"{task} ({score.split})",
        f"{score.examples:,}",
        *(NOTHING if s is None else points(s.accuracy, s.accuracy_error) for s in (before, after)),
        *(difference_cells(task_difference(before, after)) if before and after else (NOTHING,) * 4),
    )


def _harness(runs: Sequence[TaskResults]) -> str:
    versions = ", ".join(sorted({run.harness for run in runs}))
    shots = " or ".join(map(str, sorted({run.shots for run in runs})))
    return f"lm-evaluation-harness {versions} and its prompts, {shots} solved examples"


def _mean(results: TaskResults) -> str:
    errors = [score.accuracy_error for score in results.scores]
    known = [error for error in errors if error is not None]
    mean = sum(score.accuracy for score in results.scores) / len(errors)
    return points(mean, math.hypot(*known) / len(errors) if len(known) == len(errors) else None, digits=2)
