"""The parts a report is put together from: numbers at a glance and tables, as the template shows them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

from basis_sharing.reports.material import Material
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.words import amount_of_bytes, change, mending, without_folders


@dataclass(frozen=True)
class Tile:
    """One number at a glance.

    Attributes:
        name: What it is.
        change: What became of it, e.g. ``"-18.0 %"``.
        detail: Before and after.
    """

    name: str
    change: str
    detail: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        head: Names of the columns; the first column holds the names of the rows.
        rows: The cells.
        notes: What a reader has to know, below it.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def answer(material: Material) -> str:
    """Return the answer in one or two sentences: what is gained, and what it costs."""
    result = material.result
    fewer = 1 - result.after.parameters / result.before.parameters
    saved = result.before.bytes_in_memory - result.after.bytes_in_memory
    told = (
        f"{material.name} has {100 * fewer:.1f} % fewer parameters than {material.original} and needs "
        f"{amount_of_bytes(saved)} less memory"
    )
    if not material.perplexities:
        return f"{told}. What that costs in quality was not measured: compress with --evaluate, or use compare."
    dense, small = material.perplexities[0]
    quotient = small.perplexity / dense.perplexity
    return (
        f"{told}; its perplexity on {without_folders(dense.text)} is {small.perplexity:,.3f} instead of "
        f"{dense.perplexity:,.3f}, {quotient:.3f} times as high."
    )


def tiles(material: Material) -> list[Tile]:
    """Return the numbers that decide."""
    before, after = material.result.before, material.result.after
    on_disk = None if material.result.original_is_quantized else before.bytes_on_disk
    shown = [
        Tile(
            "parameters",
            change(before.parameters, after.parameters),
            f"{before.parameters:,} \u2192 {after.parameters:,}",
        ),
        _bytes_tile("memory of the weights", before.bytes_in_memory, after.bytes_in_memory),
    ]
    if on_disk is not None and after.bytes_on_disk is not None:
        shown.append(_bytes_tile("files on disk", on_disk, after.bytes_on_disk))
    for dense, small in material.perplexities:
        shown.append(
            Tile(
                f"perplexity, {without_folders(dense.text)}",
                f"\u00d7 {small.perplexity / dense.perplexity:.3f}",
                f"{dense.perplexity:,.3f} \u2192 {small.perplexity:,.3f}",
            )
        )
    return shown


def _bytes_tile(name: str, before: int, after: int) -> Tile:
    old, new = (amount_of_bytes(count).replace(" ", "\u00a0") for count in (before, after))
    return Tile(name, change(before, after), f"{old} \u2192 {new}")


def size_table(result: CompressionResult) -> Table:
    """Return all sizes before and after."""
    before, after = result.before, result.after

    def row(name: str, old: int | None, new: int | None, form: Callable[[int], str]) -> tuple[str, ...]:
        cells = ("\u2013" if value is None else form(value) for value in (old, new))
        return name, *cells, "\u2013" if old is None or new is None else change(old, new)

    def plain(value: int) -> str:
        return f"{value:,}"

    only = "" if result.recipe.roles is None else f", here only of the roles {', '.join(result.recipe.roles)}"
    exact = f"Exactly {before.bytes_in_memory:,} and {after.bytes_in_memory:,} bytes in memory"
    if after.bytes_on_disk is not None:
        old = "an unknown number of" if before.bytes_on_disk is None else f"{before.bytes_on_disk:,}"
        exact += f", {old} and {after.bytes_on_disk:,} bytes on disk"
    quantized = "On disk the original is quantized; in memory both models have one dtype."
    return Table(
        "Sizes before and after",
        ("", "original", "compressed", "change"),
        (
            row("parameters of the whole model", before.parameters, after.parameters, plain),
            row("of these in projections", before.projection_parameters, after.projection_parameters, plain),
            row(
                "multiplications per token in projections",
                before.projection_multiplications,
                after.projection_multiplications,
                plain,
            ),
            row("weights in memory", before.bytes_in_memory, after.bytes_in_memory, amount_of_bytes),
            row("files on disk", before.bytes_on_disk, after.bytes_on_disk, amount_of_bytes),
        ),
        (
            f"Projections: the matrices that can be compressed{only}; embeddings, head and norms are not. Shared and "
            "tied numbers count once.",
            f"{exact}.",
            *([quantized] if result.original_is_quantized else []),
        ),
    )


def perplexity_table(result: CompressionResult) -> Table | None:
    """Return the measured perplexities; None where none was measured."""
    if not result.perplexity_before:
        return None
    rows, notes = [], []
    for dense, small in zip(result.perplexity_before, result.perplexity_after, strict=True):
        rows.append(
            (
                dense.text,
                f"{dense.perplexity:,.4f}",
                f"{small.perplexity:,.4f}",
                f"{small.perplexity / dense.perplexity:.4f} \u00d7",
                f"{small.nats_per_token - dense.nats_per_token:+.4f}".replace("-", "\u2212"),
                "\u2013"
                if dense.bits_per_byte is None or small.bits_per_byte is None
                else f"{dense.bits_per_byte:.4f} \u2192 {small.bits_per_byte:.4f}",
            )
        )
        bos = ", each starting with the BOS token" if dense.bos else ""
        notes.append(
            f"{dense.text}: {dense.windows} windows of {dense.length} tokens{bos}, in {dense.dtype}; the same windows "
            "for both models."
        )
        notes += [f"{dense.text}: {note}" for note in dense.notes]
    head = ("text", "original", "compressed", "quotient", "nats per token", "bits per byte")
    return Table("Perplexity (lower is better)", head, tuple(rows), tuple(notes))


def expectation(result: CompressionResult) -> str | None:
    """Return what the plan expected beside what was measured, in one sentence; None where nothing was expected."""
    prediction = result.prediction
    if prediction is None:
        return None
    told = f"The plan expected {prediction.nats_per_token:+.4f} nats per token, "
    told += f"{exp(min(prediction.nats_per_token, 700)):.3f} times the perplexity"
    if prediction.scale is not None:
        return f"{told}, scaled by one plan measured on {prediction.text}."
    return f"{told}, from the calibration text alone, not scaled by a measurement."


def settings_table(result: CompressionResult) -> Table:
    """Return every setting, also those at their default."""
    rows = [(name, "\u2013" if value is None else str(value)) for name, value in result.recipe.model_dump().items()]
    return Table("All settings", ("setting", "value"), tuple(rows))


def origin_table(result: CompressionResult) -> Table:
    """Return what the compression started from: model, text, software."""
    rows = [
        ("original", result.model),
        ("fingerprint of its weights", result.model_fingerprint or "given in memory"),
        ("family", result.family),
        ("method", result.method),
        ("fraction removed from the compressible projections", f"{result.ratio_reached:.4f}"),
        ("groups", f"{len(result.entries)}, of which {sum(len(g.members) > 1 for g in result.entries)} share a basis"),
    ]
    if result.calibration is not None:
        used = result.calibration
        rows += [
            ("calibration text", f"{used.source}: {used.windows} windows of {used.length} tokens, in {used.dtype}"),
            ("fingerprint of these windows", used.fingerprint),
        ]
    rows += [("after the plan", sentence) for sentence in mending(result)]
    rows += [(f"version of {package}", version) for package, version in sorted(result.versions.items())]
    return Table("Origin and versions", ("", ""), tuple(rows))
