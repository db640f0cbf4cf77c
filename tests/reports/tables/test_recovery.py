"""What a person reads of a recovery."""

from basis_sharing.reports.tables.recovery import recovery_table
from samples import recovery


def test_a_recovery() -> None:
    table = recovery_table(recovery())
    assert table.rows[0] == ("KL divergence from the original, 3 windows held out", "0.2000", "0.1000", "0.5000 x")
    assert table.notes[1] == "The rate was cut to a third once, where the loss had grown."
    assert recovery_table(recovery(loss_before=0.0)).rows[0][-1] == "-"
    assert "diverged and was stopped" in recovery_table(recovery(diverged=True)).notes[-1]
    assert "Nothing was gained" in recovery_table(recovery(loss_after=0.2)).notes[-1]
    assert recovery_table(recovery(slowed=2)).notes[1].startswith("The rate was cut to a third 2 times")
