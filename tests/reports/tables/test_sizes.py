"""Sizes before and after."""

from basis_sharing.reports.tables.sizes import size_table
from samples import compression


def test_sizes_before_and_after() -> None:
    table = size_table(compression())
    assert table.rows[0] == ("parameters", "1,000", "820", "-18.0 %")
    assert table.rows[-1] == ("bytes on disk", "4.0 KiB", "3.3 KiB", "-17.1 %")
    assert table.notes[1] == "Exactly 4,000 and 3,280 bytes in memory, 4,100 and 3,400 bytes on disk."
    memory = compression()
    unknown = memory.model_copy(update={"before": memory.before.model_copy(update={"bytes_on_disk": None})})
    assert size_table(unknown).rows[-1] == ("bytes on disk", "-", "3.3 KiB", "-")
    assert "an unknown number of and 3,400 bytes on disk" in size_table(unknown).notes[1]
    nowhere = memory.model_copy(update={"after": memory.after.model_copy(update={"bytes_on_disk": None})})
    assert len(size_table(nowhere).rows) == 4
