"""How two plans differ."""

from basis_sharing.reports.table import Block, Table
from basis_sharing.reports.tables.plans import plan_difference
from samples import plan


def table_of(block: Block) -> Table:
    assert isinstance(block, Table)
    return block


def test_how_two_plans_differ() -> None:
    glance, changes = map(table_of, plan_difference(plan(), plan(rank=6, method="svd"), ("a.json", "b.json")))
    assert glance.rows == (
        ("method", "auto", "svd"),
        ("removed", "30.00 %", "30.00 %"),
        ("groups", "2", "2"),
        ("expected nats per token", "0.1250", "0.1250"),
    )
    assert changes.rows == (
        ("model.layers.0.q", "rank 8, with 1.q", "rank 6, with 1.q"),
        ("model.layers.1.q", "rank 8, with 0.q", "rank 6, with 0.q"),
    )
    assert changes.notes == ("2 projections are treated differently.",)
    fewer = plan().model_copy(update={"entries": plan().entries[:1]})
    _, changes = map(table_of, plan_difference(plan(), fewer, ("a", "b")))
    assert changes.rows[0] == ("model.layers.0.k", "rank 4 plain, with 0.v", "dense")
    assert plan_difference(plan(), plan(), ("a", "b"))[1] == "Both plans treat every projection alike."
