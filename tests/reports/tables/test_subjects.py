"""What the tables say that no other test reads: plans, forecasts, recoveries, estimates, rollouts, sizes."""

from pathlib import Path

import pytest

from basis_sharing.reports.table import Answer, Block, Table
from basis_sharing.reports.tables.compression import compression_summary, origin_table, settings_table
from basis_sharing.reports.tables.estimate import duration, estimate_table
from basis_sharing.reports.tables.forecast import forecast_table, plan_sentences
from basis_sharing.reports.tables.perplexity import perplexity_pairs_table
from basis_sharing.reports.tables.plans import plan_difference
from basis_sharing.reports.tables.recovery import recovery_table
from basis_sharing.reports.tables.rollout import rollout_summary, step_line
from basis_sharing.reports.tables.sizes import size_table
from samples import compression, estimate, forecast, perplexity, plan, prediction, recovery, rollout


def table_of(block: Block) -> Table:
    assert isinstance(block, Table)
    return block


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


def test_perplexity_before_and_after() -> None:
    table = perplexity_pairs_table([(perplexity(2.0), perplexity(2.1, bits_per_byte=None))])
    assert table is not None
    assert table.rows[0][1:] == ("7.3891", "8.1662", "1.1052 x", "+0.1000", "-")
    assert table.notes[0].endswith(
        "1 windows of 64 tokens, each starting with the BOS token, in float32; the same windows for both models."
    )
    assert table.notes[1].endswith("The text is short.")
    assert perplexity_pairs_table([]) is None


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


def test_a_forecast_and_what_its_plan_consists_of() -> None:
    table = forecast_table(forecast())
    assert [column.name for column in table.columns] == ["removed", "auto", "svd"]
    assert table.rows == (("20 %", "1.13 (0.90)", "> 100 (0.90)"), ("50 %", "3.49 (0.90)", "-"))
    sentences = plan_sentences(forecast())
    assert sentences[0] == (
        "The plan removes 30.00 % of the compressible parameters; 2 groups, of which 1 share across layers and 1 "
        "across roles."
    )
    for words in (
        "expected loss would be 10.0 % higher in the same size.",
        "The rank multiple costs 0.0500 nats per token",
        "Planned without gradients",
    ):
        assert any(words in sentence for sentence in sentences)
    unscaled = plan().model_copy(update={"prediction": prediction(scale=None, scale_error=None, text=None)})
    assert any("--evaluate TEXT" in sentence for sentence in plan_sentences(forecast(plan=unscaled)))


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
    fewer = plan().model_copy(update={"groups": plan().groups[:1]})
    _, changes = map(table_of, plan_difference(plan(), fewer, ("a", "b")))
    assert changes.rows[0] == ("model.layers.0.k", "rank 4 plain, with 0.v", "dense")
    assert plan_difference(plan(), plan(), ("a", "b"))[1] == "Both plans treat every projection alike."


def test_a_recovery() -> None:
    table = recovery_table(recovery())
    assert table.rows[0] == ("KL divergence from the original, 3 windows held out", "0.2000", "0.1000", "0.5000 x")
    assert table.notes[1] == "The rate was cut to a third once, where the loss had grown."
    assert recovery_table(recovery(loss_before=0.0)).rows[0][-1] == "-"
    assert "diverged and was stopped" in recovery_table(recovery(diverged=True)).notes[-1]
    assert "Nothing was gained" in recovery_table(recovery(loss_after=0.2)).notes[-1]
    assert recovery_table(recovery(slowed=2)).notes[1].startswith("The rate was cut to a third 2 times")


def test_an_estimate() -> None:
    table = estimate_table(estimate(), Path())
    assert table.rows == (("calibrate", "20 s", "257MiB"), ("plan", "3.0 h", "1280MiB"))
    assert table.footer == ("in all", "3.0 h", "2048MiB")
    assert table.notes[0] == "Text: 6 calibration windows of 64 tokens, divided among 2 processes."


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, "1 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_rollout() -> None:
    table, answer = rollout_summary(rollout())
    assert table_of(table).rows[0] == (
        *("1", "gate, up", "10 %", "0.900 x", "2.0 KiB", "1.100 x", "0.0500", "90.0 %", "1.25 x", "1.25 x", "kept"),
    )
    assert isinstance(answer, Answer)
    assert answer.good
    assert step_line(rollout().steps[0]) == "0.1: 900 parameters, perplexity 1.100 x; "
