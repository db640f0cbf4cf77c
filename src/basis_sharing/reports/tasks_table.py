"""The table of zero-shot accuracies."""

import math

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.results.tasks import TaskResults


def tasks_table(results: TaskResults) -> RenderableType:
    """Return what a model scores on each task, and the mean of the accuracies."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Zero-shot accuracy of {results.model}, % +- standard error",
        title_justify="left",
        show_footer=len(results.scores) > 1,
    )
    table.add_column("task", footer="mean", no_wrap=True)
    table.add_column("accuracy", footer=_mean(results), justify="right", no_wrap=True)
    table.add_column("normalized", justify="right", no_wrap=True)
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("prompts", no_wrap=True)
    for score in results.scores:
        table.add_row(
            score.task,
            _percent(score.accuracy, score.accuracy_error),
            _percent(score.normalized_accuracy, score.normalized_accuracy_error),
            f"{score.examples:,}",
            score.split,
            score.version,
            score.prompt_fingerprint[:8],
        )
    about = Text(
        f"  dtype {results.dtype}; lm-evaluation-harness {results.harness} and its prompts, {results.shots} solved "
        "examples"
    )
    return Group(table, about, *(Text(f"  note: {note}") for note in results.all_notes))


def _mean(results: TaskResults) -> str:
    errors = [score.accuracy_error for score in results.scores]
    known = [error for error in errors if error is not None]
    mean = sum(score.accuracy for score in results.scores) / len(errors)
    return _percent(mean, math.hypot(*known) / len(errors) if len(known) == len(errors) else None)


def _percent(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if error is None else f"{100 * value:.2f} +- {100 * error:.2f}"
