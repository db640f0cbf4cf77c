"""A compression in short, and what it started from."""

from basis_sharing.reports.tables.compression import compression_summary, origin_table, settings_table
from samples import compression


def test_a_compression_in_short() -> None:
    sentences = [block for block in compression_summary(compression()) if isinstance(block, str)]
    assert sentences[0] == (
        "Method auto; ratio asked 0.2, reached 0.2250 of the parameters of the compressible projections removed."
    )
    assert sentences[1].startswith("The plan expected +0.1250")
    assert sentences[-2:] == ["note: Note 5.", "note: ... and 2 more, see basis_sharing.json or --json"]
    origin = dict(origin_table(compression()).rows)
    assert origin["groups"] == "2, of which 1 share a basis"
    assert origin["calibration text"] == "c4:/data/c4.txt: 4 windows of 64 tokens, in float32"
    assert dict(settings_table(compression()).rows)["ratio"] == "0.2"
