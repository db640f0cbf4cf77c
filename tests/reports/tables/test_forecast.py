"""What a person reads of a plan before it is carried out."""

from typing import Any

from basis_sharing.plans.plan import PredictedSpeed
from basis_sharing.reports.table import Table
from basis_sharing.reports.tables.forecast import forecast_tables, plan_sentences, rounding_sentences, size_table
from basis_sharing.results.forecast import Point, RoleForecast
from basis_sharing.runtime.entries_basis_sharing import Bits, Factors
from samples import forecast, plan, prediction

TIMED: dict[str, Any] = {
    "points": (
        Point(
            method="auto",
            ratio=0.2,
            parameters=900,
            multiplications=900,
            loss=0.1,
            speeds={"prefill": 1.3, "decode": 0.9},
        ),
        Point(method="auto", ratio=0.5, parameters=900, multiplications=900, loss=0.1),
        Point(method="svd", ratio=0.2, parameters=900, multiplications=900, loss=0.1),
    ),
    "speed_points": (
        Point(
            method="auto",
            ratio=0.3,
            parameters=900,
            multiplications=900,
            loss=0.12,
            speeds={"prefill": 1.3, "decode": 1.1},
        ),
    ),
    "roles": (
        RoleForecast(
            role="q",
            projections=4,
            dense=1,
            kept=0.5,
            loss=0.01,
            original={"prefill": 2.0, "decode": 1.0},
            seconds={"prefill": 1.0, "decode": 2.0},
        ),
    ),
}


def test_what_is_rounded_to_how_many_bits() -> None:
    about = {"dtype": "uint4", "group": 16}
    entries = (
        Bits(members=("a",), tensors={"weight": about}),
        Bits(members=("b",), tensors={"weight": {**about, "dtype": "int8"}}),
        Factors(members=("c",), rank=3, tensors={"weight": about, "basis.weight": about}),
        Factors(members=("d",), rank=3),
    )
    rounded = plan().model_copy(update={"entries": entries})
    assert rounding_sentences(rounded) == ["Projections are rounded, 1 to 4 bits, 1 to 8 bits, 1 to 4 bits in factors."]
    assert rounding_sentences(plan()) == []


def test_a_forecast_and_what_its_plan_consists_of() -> None:
    table = size_table(forecast())
    assert [column.name for column in table.columns] == ["removed", "auto", "svd"]
    assert table.rows == (("20 %", "1.13 (0.90)", "> 100 (0.90)"), ("50 %", "3.49 (0.90)", "-"))
    sentences = plan_sentences(forecast())
    assert sentences[0] == (
        "The plan removes 30.00 % of the compressible parameters; 2 groups, of which 1 share across layers and 1 "
        "across roles."
    )
    for words in (
        "expected loss would be 10.0 % higher in the same size.",
        "Ranks in multiples of 8 to 16 cost 0.0500 nats per token",
        "Planned without gradients",
    ):
        assert any(words in sentence for sentence in sentences)
    unscaled = plan().model_copy(update={"prediction": prediction(scale=None, scale_error=None, text=None)})
    assert any("--evaluate TEXT" in sentence for sentence in plan_sentences(forecast(plan=unscaled)))


def test_speeds_of_sizes_plans_for_speeds_and_roles() -> None:
    speeds = (
        PredictedSpeed(phase="prefill", tokens=256, batch=1, original=0.2, seconds=0.16),
        PredictedSpeed(phase="decode", tokens=256, batch=8, original=0.02, seconds=0.025),
    )
    timed = forecast(plan=plan().model_copy(update={"prediction": prediction(speeds=speeds)}), **TIMED)
    sizes, by_speed, roles = (block for block in forecast_tables(timed) if isinstance(block, Table))
    assert [column.name for column in sizes.columns] == ["removed", "auto", "svd", "prefill, auto", "decode, auto"]
    assert sizes.rows[0][-2:] == ("1.30 x", "0.90 x")
    assert sizes.rows[1][-2:] == ("-", "-")
    assert by_speed.rows == (("1.30 x", "1.10 x", "30 %", "1.16"),)
    assert roles.rows == (("q", "1 of 4", "50 %", "0.0100", "2.00 x", "0.50 x"),)
    (sentence,) = [sentence for sentence in plan_sentences(timed) if "speed" in sentence]
    assert sentence == (
        "The plan is expected to have 1.25 x the original's speed in reading a prompt of 256 tokens (200.0 -> 160.0 ms)"
        " and 0.80 x the original's speed in decoding at batch 8 after 256 tokens (20.0 -> 25.0 ms)."
    )
