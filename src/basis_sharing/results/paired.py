"""Paired differences of two models on the same examples."""

import math
from collections.abc import Sequence

from basis_sharing.results.comparison import TaskDifference
from basis_sharing.results.tasks import PairedDifference, TaskResults, TaskScore


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """Return the difference of two models, example by example.

    With b examples right only in the first and c right only in the second, the difference is (c - b) / n. Its standard
    error is that of the mean of the n differences -1, 0, 1; the test is the exact binomial test on b and c.

    Args:
        first: Whether the first model answers each example right.
        second: Whether the second model does, in the same order.

    Returns:
        The difference (second minus first), its standard error and the p-value.

    Raises:
        ValueError: The lengths differ, or there is no example.
    """
    examples = len(first)
    if examples != len(second) or not examples:
        raise ValueError(f"paired examples are needed, one model has {examples} and the other {len(second)}.")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    difference = (only_second - only_first) / examples
    error = None
    if examples > 1:
        disagreements = only_first + only_second
        error = math.sqrt(max(disagreements / examples - difference**2, 0.0) / (examples - 1))
    return PairedDifference(
        examples=examples,
        only_first=only_first,
        only_second=only_second,
        difference=difference,
        standard_error=error,
        p_value=sign_test(only_first, only_second),
    )


def task_differences(first: TaskResults, second: TaskResults) -> tuple[TaskDifference, ...]:
    """Return the differences of two models task by task; both were scored on the same tasks."""
    return tuple(task_difference(*scores) for scores in zip(first.scores, second.scores, strict=True))


def task_difference(first: TaskScore, second: TaskScore) -> TaskDifference:
    """Return the difference of two models on one task, example by example if both read the same prompts."""
    paired = None
    if first.prompt_fingerprint == second.prompt_fingerprint and first.correct and second.correct:
        paired = paired_difference(first.correct, second.correct)
    return TaskDifference(task=first.task, first=first.accuracy, second=second.accuracy, paired=paired)


def sign_test(first: int, second: int) -> float:
    """Return the exact two-sided p-value of a split of ``first + second`` fair coin tosses.

    Args:
        first: Number of heads.
        second: Number of tails.
    """
    tosses = first + second
    tail = sum(math.comb(tosses, k) for k in range(min(first, second) + 1))
    share: float = 2 * tail / 2**tosses  # division of integers of any size does not overflow
    return min(1.0, share)


def shared_notes(first: TaskResults, second: TaskResults) -> list[str]:
    """Return the notes on two models' scores; a note on only one of them starts with its name, A or B."""
    a, b = first.all_notes, second.all_notes
    both = [note for note in a if note in b]
    only = [(name, note) for name, notes in (("A", a), ("B", b)) for note in notes if note not in both]
    return [*both, *(f"{name}: {note}" for name, note in only)]
