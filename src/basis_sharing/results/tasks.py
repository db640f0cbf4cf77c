"""Accuracy on zero-shot tasks, and the paired difference of two models on the same examples."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from basis_sharing.results.base import Frozen, Result


def _marks(value: Any) -> Any:
    if isinstance(value, str) and not set(value) - {"0", "1"}:
        return tuple(digit == "1" for digit in value)
    return value


def _digits(marks: tuple[bool, ...]) -> str:
    return "".join("1" if mark else "0" for mark in marks)


Marks = Annotated[
    tuple[bool, ...], BeforeValidator(_marks), PlainSerializer(_digits, return_type=str, when_used="json")
]
"""Whether each example is answered right; in JSON a string of 1 and 0, to keep files short."""


class TaskScore(Frozen):
    """The score of a model on one task.

    Attributes:
        task: The harness's name of the task.
        version: The harness's version of the task.
        split: The split that was scored.
        source: Source of the examples: a file, or a data set of the hub.
        examples: Number of examples.
        accuracy: Fraction of the examples answered right.
        accuracy_error: Its standard error; None for a single example.
        normalized_accuracy: Accuracy with log-likelihoods divided by the bytes of the answer; None if the task does not
            define it.
        normalized_accuracy_error: Its standard error.
        correct: Which examples are answered right; None if the task gives fractional points.
        correct_normalized: Which examples are answered right by normalized accuracy.
        data_fingerprint: Fingerprint of all examples of the split.
        prompt_fingerprint: Fingerprint of the scored prompts and answers in order; scores with equal fingerprints can
            be compared example by example.
        notes: Notes for the reader.
    """

    task: str
    version: str
    split: str
    source: str
    examples: int
    accuracy: float
    accuracy_error: float | None
    normalized_accuracy: float | None
    normalized_accuracy_error: float | None
    correct: Marks | None
    correct_normalized: Marks | None
    data_fingerprint: str
    prompt_fingerprint: str
    notes: tuple[str, ...] = ()


class TaskResults(Result):
    """The scores of a model on several tasks.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        dtype: Dtype the model ran in.
        limit: Largest number of examples per task; None: all.
        shots: Number of solved examples in each prompt.
        harness: Version of lm-evaluation-harness.
        scores: One score per task, in the order of the settings.
        notes: Notes about the run.
    """

    kind: Literal["tasks"] = "tasks"
    model: str
    model_fingerprint: str | None
    dtype: str
    limit: int | None
    shots: int = 0
    harness: str
    scores: tuple[TaskScore, ...]
    notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes about the run, then those about its scores."""
        return (*self.notes, *(note for score in self.scores for note in score.notes))


class CachedScore(Result):
    """A score in the cache.

    Attributes:
        key: Hash of everything the score depends on.
        score: The score.
    """

    kind: Literal["cached score"] = "cached score"
    key: str
    score: TaskScore


class PairedDifference(Frozen):
    """Two models on the same examples.

    Attributes:
        examples: Number of examples.
        only_first: Examples only the first model answers right.
        only_second: Examples only the second model answers right.
        difference: Accuracy of the second minus that of the first.
        standard_error: Standard error of the difference, from the differences of the pairs; None for a single example.
        p_value: p-value of the two-sided exact McNemar (sign) test: the probability of a split of the disagreements
            that is at least as uneven, between equally good models.
    """

    examples: int
    only_first: int
    only_second: int
    difference: float
    standard_error: float | None
    p_value: float
