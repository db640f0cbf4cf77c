"""The table of sizes of a model before and after its compression."""

from collections.abc import Callable

from basis_sharing.reports.table import Table, columns
from basis_sharing.reports.tables.cells import NOTHING, size
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.words import change


def size_table(result: CompressionResult) -> Table:
    """Return parameters, multiplications and bytes of the original and of the compressed model."""
    before, after = result.before, result.after
    rows = [
        _row("parameters", before.parameters, after.parameters),
        _row("  of these in compressible projections", before.projection_parameters, after.projection_parameters),
        _row("  multiplications per token there", before.projection_multiplications, after.projection_multiplications),
        _row("bytes in memory", before.bytes_in_memory, after.bytes_in_memory, size),
    ]
    if after.bytes_on_disk is not None:
        rows.append(_row("bytes on disk", before.bytes_on_disk, after.bytes_on_disk, size))
    return Table(
        "Size before and after", columns("", "original", "compressed", "change"), tuple(rows), tuple(_notes(result))
    )


def _notes(result: CompressionResult) -> list[str]:
    before, after = result.before, result.after
    only = "" if result.recipe.roles is None else f", here only of the roles {', '.join(result.recipe.roles)}"
    exact = f"Exactly {before.bytes_in_memory:,} and {after.bytes_in_memory:,} bytes in memory"
    if after.bytes_on_disk is not None:
        known = "an unknown number of" if before.bytes_on_disk is None else f"{before.bytes_on_disk:,}"
        exact += f", {known} and {after.bytes_on_disk:,} bytes on disk"
    notes = [
        f"Projections: the matrices that can be compressed{only}; embeddings, head and norms are not. Shared and tied "
        "numbers count once.",
        f"{exact}.",
    ]
    if result.original_is_quantized:
        notes.append("On disk the original is quantized; in memory both models have one dtype.")
    return notes


def _counted(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _row(
    name: str, before: int | None, after: int | None, form: Callable[[int | None], str] = _counted
) -> tuple[str, ...]:
    return name, form(before), form(after), NOTHING if not before or after is None else change(before, after)
