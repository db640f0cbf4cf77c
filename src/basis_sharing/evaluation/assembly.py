"""Assembly of a comparison from its measurements: differences, drift, notes and the verdict."""

from collections.abc import Sequence

from basis_sharing.evaluation.intervals import loss_difference
from basis_sharing.evaluation.sides import Baseline, ComparisonTask
from basis_sharing.evaluation.verdict import judge
from basis_sharing.results.comparison import Agreement, Comparison, Continuation, Drift, Generation, Measured
from basis_sharing.run.versions import software_versions


def comparison_of(
    measured: tuple[Measured, Measured],
    *,
    paired: bool,
    agreement: Agreement | None,
    generations: tuple[Generation, ...],
    task: ComparisonTask,
    baseline: Baseline | None,
    first_is_stored: bool,
    notes: tuple[str, ...],
) -> Comparison:
    """Return the comparison.

    Args:
        measured: Both models with their perplexities.
        paired: Whether both perplexities are of the same windows.
        agreement: Agreement of the models; None if it was not measured.
        generations: Continuations of the prompts.
        task: The settings of the comparison.
        baseline: An earlier comparison; None: this is the first.
        first_is_stored: Whether the results of the first model are the baseline's.
        notes: Notes for the reader.

    Returns:
        The comparison with its verdict, its drift from the baseline if there is one, and all notes.
    """
    first, second = measured
    versions = software_versions()
    difference = None
    if paired:
        difference = loss_difference(first.perplexity.window_nats, second.perplexity.window_nats)
    drift = None
    if baseline is not None:
        drift = _drift(baseline, second, generations)
        notes += _changed_conditions(drift, second, versions)
    silence = (
        _silence("A", [generation.first for generation in generations]),
        _silence("B", [generation.second for generation in generations]),
    )
    notes += (*first.perplexity.notes, *second.perplexity.notes, *(note for note in silence if note))
    return Comparison(
        first=first,
        second=second,
        difference=difference,
        agreement=agreement,
        generations=generations,
        new_tokens=task.new_tokens,
        dtype=task.dtype,
        limits=task.limits,
        verdict=judge(task.limits, first, second, difference, agreement, drift),
        drift=drift,
        first_is_stored=first_is_stored,
        notes=tuple(dict.fromkeys(notes)),
        versions=versions,
    )


def _drift(baseline: Baseline, now: Measured, generations: Sequence[Generation]) -> Drift:
    then = baseline.comparison.second
    pairs = zip(baseline.comparison.generations, generations, strict=True)
    return Drift(
        baseline=baseline.source,
        stored=then,
        difference=loss_difference(then.perplexity.window_nats, now.perplexity.window_nats),
        changed_generations=sum(old.second.text != new.second.text for old, new in pairs),
        versions=baseline.comparison.versions,
    )


def _changed_conditions(drift: Drift, now: Measured, versions: dict[str, str]) -> tuple[str, ...]:
    then, notes = drift.stored.perplexity, []
    if then.dtype != now.perplexity.dtype:
        notes.append(f"B ran in {then.dtype} for {drift.baseline}, and in {now.perplexity.dtype} now.")
    for name, number in versions.items():
        if drift.versions.get(name, number) != number:
            notes.append(f"{drift.baseline} was measured with {name} {drift.versions[name]}, this with {number}.")
    return tuple(notes)


def _silence(name: str, continuations: Sequence[Continuation]) -> str | None:
    silent_ones = sum(continuation.tokens == 0 for continuation in continuations)
    if not silent_ones:
        return None
    return f"{name} generates only end-of-text after {silent_ones} of {len(continuations)} prompts."
