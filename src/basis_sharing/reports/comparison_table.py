"""Two models side by side, as the terminal shows them; the answer comes last, where the eye rests."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from basis_sharing.results.comparison import (
    Agreement,
    Comparison,
    Continuation,
    Difference,
    Disagreement,
    Generation,
    Interval,
)


def comparison_table(result: Comparison) -> RenderableType:
    """Return measures, disagreements, generations, notes and the verdict of a comparison."""
    return Group(*_parts(result))


def _parts(result: Comparison) -> Iterator[RenderableType]:
    then = f" (as in {result.drift.baseline}, not run)" if result.drift and result.first_is_stored else ""
    yield Text(f"\n  A  {result.first.model}{then}\n  B  {result.second.model}")
    yield _measures(result)
    if result.agreement is not None and result.agreement.disagreements:
        yield _disagreements(result.agreement)
    if result.tasks:
        yield _tasks(result)
    if result.generations:
        yield _generations(result)
    yield from (Padding(Text(f"note: {note}"), (0, 2)) for note in result.notes)
    style = {True: "bold green", False: "bold red", None: "bold"}[result.verdict.held]
    yield Padding(Text(result.verdict.sentence, style=style), (1, 2))


def _tasks(result: Comparison) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="  Accuracy on tasks", title_justify="left")
    table.add_column("task")
    for column in ("A", "B", "B less A, in points", "only A right", "only B right", "p (paired)"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in result.tasks:
        paired, difference = task.paired, f"{100 * (task.second - task.first):+.1f}"
        rest = ("-", "-", "-")
        if paired is not None:
            if paired.standard_error is not None:
                difference += f" +- {100 * paired.standard_error:.1f}"
            rest = (str(paired.only_first), str(paired.only_second), f"{paired.p_value:.3f}")
        table.add_row(task.task, f"{task.first:.1%}", f"{task.second:.1%}", difference, *rest)
    return table


def _measures(result: Comparison) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for column in ("A", "B", "B against A", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    one, other = result.first.perplexity, result.second.perplexity
    quotient, spread = _quotient(result.difference)
    table.add_row(f"perplexity, {other.text}", f"{one.perplexity:,.4f}", f"{other.perplexity:,.4f}", quotient, spread)
    rise, spread = "-", "-"
    if result.difference is not None:
        rise = f"{result.difference.nats_per_token:+.5f}"
        spread = _interval(result.difference.nats_interval, "+.5f")
    table.add_row("  nats per token", f"{one.nats_per_token:.5f}", f"{other.nats_per_token:.5f}", rise, spread)
    if one.bits_per_byte is not None and other.bits_per_byte is not None:
        table.add_row(
            "  bits per byte",
            f"{one.bits_per_byte:.5f}",
            f"{other.bits_per_byte:.5f}",
            f"{other.bits_per_byte / one.bits_per_byte:.4f} x",
            "",
        )
    table.add_row("  windows x tokens", *(f"{p.windows} x {p.length}" for p in (one, other)), "", "")
    table.add_row("  dtype", one.dtype, other.dtype, "", "")
    found = result.agreement
    if found is not None:
        table.add_row(
            "KL divergence (A || B), mean, nats", "", "", f"{found.mean_kl:.5f}", _interval(found.kl_interval, ".5f")
        )
        table.add_row("  exceeded by 1 % of the tokens", "", "", f"{found.percentile_99_kl:.5f}", "")
        table.add_row("same most probable token", "", "", f"{found.top1:.2%}", _interval(found.top1_interval, ".2%"))
    if result.drift is not None:
        quotient, spread = _quotient(result.drift.difference)
        stored = result.drift.stored.perplexity.perplexity
        table.add_row("B then and now: perplexity", f"then {stored:,.4f}", f"{other.perplexity:,.4f}", quotient, spread)
        changed = f"{result.drift.changed_generations} of {len(result.generations)}"
        table.add_row("  prompts continued differently", "", "", changed, "")
    return table


def _disagreements(agreement: Agreement) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="Where they disagree most", title_justify="left")
    table.add_column("KL", justify="right", no_wrap=True)
    table.add_column("place", no_wrap=True)
    table.add_column("text before", overflow="fold", ratio=3)
    for column in ("the text", "A says", "B says"):
        table.add_column(column, overflow="fold", ratio=1)
    for place in agreement.disagreements:
        table.add_row(f"{place.kl:.3f}", f"{place.window}:{place.position}", *_words(place))
    return table


def _words(place: Disagreement) -> tuple[Text, ...]:
    return (
        Text(f"...{_visible(place.context)}"),
        Text(_visible(place.token)),
        Text(f"{_visible(place.first)} ({place.first_probability:.0%})"),
        Text(f"{_visible(place.second)} ({place.second_probability:.0%})"),
    )


def _generations(result: Comparison) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="What they write (greedily)", title_justify="left", show_lines=True)
    table.add_column("prompt", overflow="fold", ratio=1)
    table.add_column("A", overflow="fold", ratio=2)
    table.add_column("B", overflow="fold", ratio=2)
    for generation in result.generations:
        table.add_row(*_columns(generation))
    return table


def _columns(generation: Generation) -> tuple[Text, ...]:
    return Text(generation.prompt), _written(generation.first), _written(generation.second)


def _written(continuation: Continuation) -> Text:
    if not continuation.tokens:
        return Text("(only end-of-text)", style="italic")
    return Text(_visible(continuation.text.strip("\n"), keep="\n") + (" (end)" if continuation.ended else ""))


def _quotient(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "-", "-"
    return f"{difference.quotient:,.4f} x", _interval(difference.quotient_interval, ",.4f")


def _interval(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "one window"
    return f"{interval.low:{form}} to {interval.high:{form}}"


def _visible(text: str, keep: str = "") -> str:
    """Return a text with its line ends and control characters, which a model may write, as visible escapes."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
