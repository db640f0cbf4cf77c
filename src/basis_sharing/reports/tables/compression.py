"""Tables of a compression: sizes and perplexity, origin, and settings."""

from basis_sharing.reports.table import Block, Table, columns
from basis_sharing.reports.tables.cells import NOTHING
from basis_sharing.reports.tables.perplexity import perplexity_pairs_table
from basis_sharing.reports.tables.sizes import size_table
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.words import (
    asked_and_reached,
    bits_per_weight,
    calibrated_on,
    condensed,
    expectation,
    groups_and_shared,
    repairs,
)


def compression_summary(result: CompressionResult) -> list[Block]:
    """Return sizes and perplexity before and after, and sentences about the compression, its prediction and notes."""
    perplexity = compressed_perplexity_table(result)
    return [
        size_table(result),
        *([perplexity] if perplexity is not None else []),
        asked_and_reached(result),
        *([expectation(result.prediction)] if result.prediction is not None else []),
        *repairs(result),
        *(f"note: {note}" for note in condensed(result.notes)),
    ]


def compressed_perplexity_table(result: CompressionResult) -> Table | None:
    """Return the perplexities measured when the model was compressed; None if none was measured."""
    return perplexity_pairs_table(tuple(zip(result.perplexity_before, result.perplexity_after, strict=True)))


def settings_table(result: CompressionResult) -> Table:
    """Return all settings, also those at their default."""
    rows = [(name, NOTHING if value is None else str(value)) for name, value in result.recipe.model_dump().items()]
    return Table("All settings", columns("setting", "value", words=2), tuple(rows))


def origin_table(result: CompressionResult) -> Table:
    """Return the origin of a compression: model, text, software."""
    rows = [
        ("original", result.model),
        ("fingerprint of its weights", result.model_fingerprint or "given in memory"),
        ("family", result.family),
        ("method", result.method),
        ("fraction removed from the compressible projections", f"{result.ratio_reached:.4f}"),
        ("groups", groups_and_shared(result)),
    ]
    bits = bits_per_weight(result)
    if bits is not None and any(report.entry.tensors for report in result.entries):
        rows.append(("bits per weight of these projections, scales and indices counted", f"{bits:.3f}"))
    text = calibrated_on(result)
    if text is not None and result.calibration is not None:
        rows += [("calibration text", text), ("fingerprint of these windows", result.calibration.fingerprint)]
    rows += [("after the plan", sentence) for sentence in repairs(result)]
    rows += [(f"version of {package}", version) for package, version in sorted(result.versions.items())]
    return Table("Origin and versions", columns("", "", words=2), tuple(rows))
