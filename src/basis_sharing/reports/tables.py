"""The tables the command line prints."""

from collections.abc import Sequence
from math import exp

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.models.sizes import RoleRow, starting_point
from basis_sharing.plans.plan import Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.target import TARGETS
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.words import mending

SHOWN_RATIOS = (0.2, 0.5)


def mebibytes(count: int | None) -> str:
    """Format a number of bytes."""
    return "-" if count is None else f"{count / 2**20:,.1f} MiB"


def compression_table(result: CompressionResult) -> RenderableType:
    """Return what a compression gained and cost."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Original and compressed (ratio: compressed / original)", title_justify="left"
    )
    table.add_column("", overflow="fold")
    for column in ("original", "compressed", "quotient"):
        table.add_column(column, justify="right", no_wrap=True)
    before, after = result.before, result.after
    table.add_row(*_row("parameters", before.parameters, after.parameters))
    table.add_row(*_row("  in compressible projections", before.projection_parameters, after.projection_parameters))
    table.add_row(
        *_row("  multiplied per token there", before.projection_multiplications, after.projection_multiplications)
    )
    table.add_row(
        "bytes in memory",
        f"{before.bytes_in_memory:,}",
        f"{after.bytes_in_memory:,}",
        _quotient(after.bytes_in_memory, before.bytes_in_memory),
    )
    if before.bytes_on_disk is not None and after.bytes_on_disk is not None:
        table.add_row(*_row("bytes on disk", before.bytes_on_disk, after.bytes_on_disk))
    elif after.bytes_on_disk is not None:
        table.add_row("bytes on disk", "-", f"{after.bytes_on_disk:,}", "-")
    for dense, compressed in zip(result.perplexity_before, result.perplexity_after, strict=True):
        table.add_row(
            f"perplexity, {dense.text}",
            f"{dense.perplexity:,.3f}",
            f"{compressed.perplexity:,.3f}",
            _quotient(compressed.perplexity, dense.perplexity),
        )
        if dense.bits_per_byte is not None and compressed.bits_per_byte is not None:
            table.add_row(
                "  bits per byte",
                f"{dense.bits_per_byte:.4f}",
                f"{compressed.bits_per_byte:.4f}",
                _quotient(compressed.bits_per_byte, dense.bits_per_byte),
            )
    ratio = Text(
        f"  method {result.method}; {_asked(result.recipe)}, reached {result.ratio_reached:.4f} of the compressible "
        "projections removed"
    )
    if result.prediction is not None:
        ratio.append(f"\n  {expectation(result.prediction)}")
    if result.original_is_quantized:
        ratio.append("\n  the original on disk is quantized; in memory both models have one dtype")
    mended = [Text(f"  {sentence}") for sentence in mending(result)]
    return Group(table, ratio, *mended, *(Text(f"  note: {note}") for note in condensed(result.notes)))


def expectation(prediction: Prediction) -> str:
    """Return what a plan was expected to cost, in one sentence."""
    rise = prediction.nats_per_token
    told = f"expected by the plan: {rise:.4f} nats per token more, {exp(min(rise, 700)):.3f} x the perplexity"
    if prediction.scale is None:
        return f"{told} (not scaled by a measurement)"
    error = "" if prediction.scale_error is None else f" +- {prediction.scale_error:.2f}"
    return f"{told} (scaled by {prediction.scale:.2f}{error}, one plan measured on {prediction.text})"


def _asked(recipe: Recipe) -> str:
    name = next(name for name in TARGETS if getattr(recipe, name) is not None)
    return f"{name.replace('_', ' ')} asked {getattr(recipe, name)}"


def condensed(notes: Sequence[str], most: int = 6) -> list[str]:
    """Return the first notes, and how many more there are (all of them are in the result file)."""
    if len(notes) <= most:
        return list(notes)
    return [*notes[:most], f"... and {len(notes) - most} more, see basis_sharing.json or --json"]


def perplexity_table(model: str, results: Sequence[Perplexity]) -> RenderableType:
    """Return the perplexities of one model."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Perplexity of {model}", title_justify="left")
    table.add_column("text", overflow="fold")
    for column in ("perplexity", "nats/token", "bits/byte", "windows", "tokens each", "BOS", "dtype"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.text,
            f"{result.perplexity:,.4f}",
            f"{result.nats_per_token:.5f}",
            "-" if result.bits_per_byte is None else f"{result.bits_per_byte:.5f}",
            str(result.windows),
            str(result.length),
            "yes" if result.bos else "no",
            result.dtype,
        )
    return Group(table, *(Text(f"  note: {note}") for result in results for note in result.notes))


def inspection_table(model: str, family: str, rows: Sequence[RoleRow]) -> RenderableType:
    """Return what a model consists of, role by role."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{model}: family {family}", title_justify="left", show_footer=True)
    table.add_column("role", footer="total", overflow="fold")
    table.add_column("shape (in x out)", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True, footer=f"{sum(row.parameters for row in rows):,}")
    table.add_column("memory", justify="right", no_wrap=True, footer=mebibytes(sum(row.bytes for row in rows)))
    table.add_column("share", justify="right", no_wrap=True, footer="100.0 %")
    shown = " / ".join(f"{100 * ratio:.0f} %" for ratio in SHOWN_RATIOS)
    table.add_column(f"compressible; removing\n{shown} saves", footer=_saved(rows), min_width=24)
    for row in rows:
        table.add_row(
            row.name,
            ", ".join(" x ".join(map(str, shape)) for shape in row.shapes),
            str(row.count),
            f"{row.parameters:,}",
            mebibytes(row.bytes),
            f"{100 * row.share:.1f} %",
            f"yes: {_saved([row])}" if row.compressible else f"no: {row.reason or 'not a projection'}",
        )
    return Group(table, Text(f"  {advice(rows)}"))


def advice(rows: Sequence[RoleRow]) -> str:
    """Return where to start, in one sentence."""
    start = starting_point(rows)
    names = [row.name for row in start]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    half, total = sum(row.saved_bytes(0.5) for row in start), sum(row.bytes for row in rows)
    sentence = (
        f"start with {listed}: {100 * sum(row.share for row in start):.1f} % of the memory; removing half of that "
        f"saves {mebibytes(half)} of the model's {mebibytes(total)}"
    )
    largest = max(rows, key=lambda row: row.bytes)
    if largest.compressible:
        return f"{sentence}."
    return f"{sentence} (the largest part, {largest.name}, {100 * largest.share:.1f} %, stays as it is)."


def _saved(rows: Sequence[RoleRow]) -> str:
    return " / ".join(mebibytes(sum(row.saved_bytes(ratio) for row in rows)) for ratio in SHOWN_RATIOS)


def _row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", _quotient(after, before)


def _quotient(after: float, before: float) -> str:
    return f"{after / before:.3f} x"
