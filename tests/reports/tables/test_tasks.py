"""The table of zero-shot accuracies as a person reads it."""

from rich.console import Console

from basis_sharing.reports.tables.tasks import scores_pairs_table, scores_table
from basis_sharing.reports.terminal import printable
from basis_sharing.results.tasks import TaskScore
from samples import score, tasks


def shown(*scores: TaskScore) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(printable(scores_table(tasks(*scores))))
    return "\n".join(" ".join(line.split()) for line in capture.get().splitlines())


def test_scores_and_their_mean() -> None:
    text = shown(score("one", 0.25, 0.03, 0.5), score("two", 0.75, 0.04))
    for line in (
        "one 25.00 +- 3.00 50.00 +- 1.00 1,000 test 1.0 01234567",
        "two 75.00 +- 4.00 - 1,000 test 1.0 01234567",
        "mean 50.00 +- 2.50",
        "dtype float32; lm-evaluation-harness 0.4 and its prompts, 0 solved examples",
        "note: A run.",
        "note: two is a sample.",
    ):
        assert line in text


def test_one_example_has_no_error_and_one_task_no_mean() -> None:
    assert "mean" not in shown(score("one", 1.0, None))
    assert "mean 50.00" in shown(score("one", 1.0, None), score("two", 0.0, 0.1)).splitlines()


def test_scores_before_and_after_are_side_by_side() -> None:
    table = scores_pairs_table([tasks(score("one", 0.25, 0.03))], [tasks(score("two", 0.5, None))])
    assert table is not None
    assert table.rows == (
        ("one (test)", "1,000", "25.0 +- 3.0", "-", "-", "-", "-", "-"),
        ("two (test)", "1,000", "-", "50.0", "-", "-", "-", "-"),
    )
    assert scores_pairs_table([], []) is None
