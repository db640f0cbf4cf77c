"""Perplexity before and after."""

from basis_sharing.reports.tables.perplexity import perplexity_pairs_table
from samples import perplexity


def test_perplexity_before_and_after() -> None:
    table = perplexity_pairs_table([(perplexity(2.0), perplexity(2.1, bits_per_byte=None))])
    assert table is not None
    assert table.rows[0][1:] == ("7.3891", "8.1662", "1.1052 x", "+0.1000", "-")
    assert table.notes[0].endswith(
        "1 windows of 64 tokens, each starting with the BOS token, in float32; the same windows for both models."
    )
    assert table.notes[1].endswith("The text is short.")
    assert perplexity_pairs_table([]) is None
