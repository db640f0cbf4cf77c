"""The table of zero-shot accuracies as a person reads it."""

from rich.console import Console

from basis_sharing.reports.tasks_table import tasks_table
from basis_sharing.results.tasks import TaskResults, TaskScore


def score(task: str, accuracy: float, error: float | None, normalized: float | None = None) -> TaskScore:
    return TaskScore(
        task=task,
        version="1.0",
        split="test",
        source="a file",
        examples=1000,
        accuracy=accuracy,
        accuracy_error=error,
        normalized_accuracy=normalized,
        normalized_accuracy_error=None if normalized is None else 0.01,
        correct=None,
        correct_normalized=None,
        data_fingerprint="d" * 32,
        prompt_fingerprint="0123456789abcdef",
        notes=(f"{task} is a sample.",),
    )


def shown(*scores: TaskScore) -> str:
    results = TaskResults(
        model="m", model_fingerprint=None, dtype="float32", limit=None, harness="0.4", scores=scores, notes=("A run.",)
    )
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tasks_table(results))
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
