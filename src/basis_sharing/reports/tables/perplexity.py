"""Tables of perplexity: of one model on several texts, and before and after a compression."""

from collections.abc import Sequence

from basis_sharing.reports.table import Table, columns
from basis_sharing.reports.tables.cells import NOTHING, noted, number, quotient
from basis_sharing.results.measures import Perplexity


def perplexity_table(model: str, results: Sequence[Perplexity]) -> Table:
    """Return the perplexities of one model."""
    rows = tuple(
        (
            result.text,
            f"{result.perplexity:,.4f}",
            f"{result.nats_per_token:.5f}",
            number(result.bits_per_byte, ".5f"),
            str(result.windows),
            str(result.length),
            "yes" if result.bos else "no",
            result.dtype,
        )
        for result in results
    )
    head = columns("text", "perplexity", "nats/token", "bits/byte", "windows", "tokens each", "BOS", "dtype")
    return Table(f"Perplexity of {model}", head, rows, noted(tuple(note for r in results for note in r.notes)))


def perplexity_pairs_table(pairs: Sequence[tuple[Perplexity, Perplexity]]) -> Table | None:
    """Return the perplexities of the original and of the compressed model on the same windows; None if none."""
    if not pairs:
        return None
    notes = []
    for dense, _ in pairs:
        bos = ", each starting with the BOS token" if dense.bos else ""
        notes.append(
            f"{dense.text}: {dense.windows} windows of {dense.length} tokens{bos}, in {dense.dtype}; the same windows "
            "for both models."
        )
        notes += [f"{dense.text}: {note}" for note in dense.notes]
    head = columns("text", "original", "compressed", "quotient", "nats per token", "bits per byte")
    return Table("Perplexity (lower is better)", head, tuple(_row(*pair) for pair in pairs), tuple(notes))


def _row(dense: Perplexity, small: Perplexity) -> tuple[str, ...]:
    known = dense.bits_per_byte is not None and small.bits_per_byte is not None
    return (
        dense.text,
        f"{dense.perplexity:,.4f}",
        f"{small.perplexity:,.4f}",
        quotient(small.perplexity, dense.perplexity),
        f"{small.nats_per_token - dense.nats_per_token:+.4f}",
        f"{dense.bits_per_byte:.4f} -> {small.bits_per_byte:.4f}" if known else NOTHING,
    )
