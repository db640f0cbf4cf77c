"""Tables of a comparison: measures, limits, tasks, disagreements and generations."""

import re

from basis_sharing.reports.table import Answer, Block, Column, Table, columns, escaped
from basis_sharing.reports.tables.cells import NOTHING, interval, noted, number, percent, quoted, quotient, times
from basis_sharing.reports.tables.tasks import PAIRED, difference_cells
from basis_sharing.results.comparison import Comparison, Continuation, Difference


def comparison_summary(result: Comparison) -> list[Block]:
    """Return the models, tables and verdict of a comparison; the verdict is last, at the bottom of the terminal."""
    answer = Answer(result.verdict.sentence, result.verdict.held)
    return [f"\n{models_line(result)}", *comparison_tables(result), answer]


def models_line(result: Comparison) -> str:
    """Return the names of models A and B, in two lines."""
    then = f" (as in {result.drift.baseline}, not run)" if result.drift and result.first_is_stored else ""
    return f"A  {result.first.model}{then}\nB  {result.second.model}"


def comparison_tables(result: Comparison) -> list[Table]:
    """Return the tables of a comparison, without empty ones."""
    tables = [
        measures_table(result),
        limits_table(result),
        compared_tasks_table(result),
        disagreements_table(result),
        generations_table(result),
    ]
    return [table for table in tables if table is not None]


def measures_table(result: Comparison) -> Table:
    """Return the perplexities of both models, and the differences of their predictions."""
    one, other = result.first.perplexity, result.second.perplexity
    difference, agreement = result.difference, result.agreement
    rise = None if difference is None else difference.nats_per_token
    spread = NOTHING if difference is None else interval(difference.nats_interval, "+.5f")
    rows: list[tuple[str, ...]] = [
        (f"perplexity, {other.text}", f"{one.perplexity:,.4f}", f"{other.perplexity:,.4f}", *_quotient(difference)),
        ("  nats per token", f"{one.nats_per_token:.5f}", f"{other.nats_per_token:.5f}", number(rise, "+.5f"), spread),
    ]
    if one.bits_per_byte is not None and other.bits_per_byte is not None:
        cells = (f"{one.bits_per_byte:.5f}", f"{other.bits_per_byte:.5f}")
        rows.append(("  bits per byte", *cells, quotient(other.bits_per_byte, one.bits_per_byte), ""))
    rows.append(("  windows x tokens", *(f"{p.windows} x {p.length}" for p in (one, other)), "", ""))
    rows.append(("  dtype", one.dtype, other.dtype, "", ""))
    if agreement is not None:
        kl, same = interval(agreement.kl_interval, ".5f"), interval(agreement.top1_interval, ".2f", " %")
        rows.append(("KL divergence (A || B), mean, nats", "", "", f"{agreement.mean_kl:.5f}", kl))
        rows.append(("  exceeded by 1 % of the tokens", "", "", f"{agreement.percentile_99_kl:.5f}", ""))
        rows.append(("same most probable token", "", "", percent(agreement.top1, 2), same))
    if result.drift is not None:
        then = f"then {result.drift.stored.perplexity.perplexity:,.4f}"
        cells = (then, f"{other.perplexity:,.4f}")
        rows.append(("B then and now: perplexity", *cells, *_quotient(result.drift.difference)))
        changed = f"{result.drift.changed_generations} of {len(result.generations)}"
        rows.append(("  prompts continued differently", "", "", changed, ""))
    head = columns("", "A", "B", "B against A", "95 % interval")
    return Table("How far apart the models are", head, tuple(rows), noted(result.notes))


def limits_table(result: Comparison) -> Table | None:
    """Return the limits and whether they were held; None if none was set."""
    rows = tuple(
        (
            check.limit.replace("_", " "),
            f"{check.bound:.4g}",
            f"{check.value:.4g}",
            ("held" if check.held else "broken") + (", but uncertain" if check.uncertain else ""),
        )
        for check in result.verdict.checks
    )
    return Table("Limits", columns("limit", "bound", "measured", ""), rows) if rows else None


def compared_tasks_table(result: Comparison) -> Table | None:
    """Return the accuracies of both models on zero-shot tasks; None if they were not measured."""
    rows = tuple(
        (task.task, percent(task.first), percent(task.second), *difference_cells(task)) for task in result.tasks
    )
    head = columns("task", "A", "B", "B less A, in points", "only A right", "only B right", "p (paired)")
    return Table("Accuracy on tasks", head, rows, (PAIRED,)) if rows else None


def disagreements_table(result: Comparison) -> Table | None:
    """Return the positions where the models disagree most; None if there are none."""
    places = () if result.agreement is None else result.agreement.disagreements
    rows = tuple(
        (
            f"{place.window}:{place.position}",
            f"...{quoted(place.context)}",
            quoted(place.token),
            f"{quoted(place.first)} ({place.first_probability:.0%})",
            f"{quoted(place.second)} ({place.second_probability:.0%})",
            f"{place.kl:.3f}",
        )
        for place in places
    )
    words = ("text before", "the text", "A says", "B says")
    head = (Column("place"), *columns(*words, words=len(words)), Column("KL, nats"))
    return Table("Where they disagree most", head, rows) if rows else None


def generations_table(result: Comparison) -> Table | None:
    """Return the continuations of the prompts by both models; None if there are no prompts."""
    rows = tuple((escaped(g.prompt, keep="\n"), _written(g.first), _written(g.second)) for g in result.generations)
    title = f"What they write (greedily), at most {result.new_tokens} tokens"
    return (
        Table(title, columns("prompt", "A", "B", words=3), rows, sections=tuple(range(1, len(rows)))) if rows else None
    )


def without_empty_lines(text: str) -> str:
    """Return a text in which long runs of empty lines are replaced by their number."""
    return re.sub(r"\n{4,}", lambda match: f"\n[{len(match[0]) - 1} empty lines]\n", text)


def _written(continuation: Continuation) -> str:
    if not continuation.tokens:
        return "(only end-of-text)"
    text = without_empty_lines(escaped(continuation.text, keep="\n")).strip("\n")
    return f"{text}\n({continuation.tokens} tokens{', ended by the model' if continuation.ended else ''})"


def _quotient(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return NOTHING, NOTHING
    return times(difference.quotient, 4), interval(difference.quotient_interval, ",.4f")
