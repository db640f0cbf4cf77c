"""What a person reads of a rollout."""

from basis_sharing.reports.table import Answer, Block, Table
from basis_sharing.reports.tables.rollout import rollout_summary, step_line
from samples import rollout


def table_of(block: Block) -> Table:
    assert isinstance(block, Table)
    return block


def test_a_rollout() -> None:
    table, answer = rollout_summary(rollout())
    assert table_of(table).rows[0] == (
        *("1", "gate, up", "10 %", "0.900 x", "2.0 KiB", "1.100 x", "0.0500", "90.0 %", "1.25 x", "1.25 x", "kept"),
    )
    assert isinstance(answer, Answer)
    assert answer.good
    assert step_line(rollout().steps[0]) == "0.1: 900 parameters, perplexity 1.100 x; "
