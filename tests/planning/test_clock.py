"""Limits on time through the whole planner, on a machine with given times."""

from pathlib import Path
from typing import Any

import pytest
import torch

import basis_sharing
from basis_sharing.costs import products
from basis_sharing.costs.stopwatch import Measured
from basis_sharing.costs.time import Time, Workload
from basis_sharing.costs.time_table import TimedOn, TimeTable
from basis_sharing.errors import PlanError, RecipeError
from basis_sharing.planning.clock import TimeLimit
from basis_sharing.planning.stage import missed
from basis_sharing.plans.plan import Plan, PredictedSpeed
from pico import PICO, TEXT, pico_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def planned(text: str, **settings: Any) -> Plan:
    options = {"calibration": text, "windows": 4, "length": 64, "across_depth": False, "baselines": (), **settings}
    return basis_sharing.plan(PICO["llama"](), tokenizer=pico_tokenizer(), **options).plan


def speeds(plan: Plan) -> dict[str, float]:
    assert plan.prediction is not None
    return {found.phase: found.speed for found in plan.prediction.speeds}


@pytest.mark.parametrize("phase", ["prefill", "decode", None])
def test_a_speed_is_reached_in_the_phases_that_are_named(phase: Any, text: str) -> None:
    plan = planned(text, min_speedup="1.2x", phase=phase, tokens=64, batch=None if phase == "prefill" else 4)
    found = speeds(plan)
    for name in (phase,) if phase else ("prefill", "decode"):
        assert 1.2 <= found[name] < 1.23


def test_a_latency_beside_a_ratio(text: str) -> None:
    plan = planned(text, ratio=0.2)
    assert plan.prediction is not None
    (prefill, _) = plan.prediction.speeds
    tighter = planned(text, ratio=0.2, max_latency=0.97 * prefill.seconds, phase="prefill")
    assert tighter.prediction is not None
    assert tighter.prediction.speeds[0].seconds <= 0.97 * prefill.seconds
    assert tighter.ratio >= 0.2
    assert tighter.prediction.loss > plan.prediction.loss
    with pytest.raises(PlanError, match=r"--max-latency 1e-06ms \(decode at batch 1 .*\) cannot be met: .*ms"):
        planned(text, max_latency=1e-9, phase="decode")


def test_a_perplexity_beside_a_speed(text: str) -> None:
    settings = {"max_perplexity_increase": 1.0, "evaluate": (text,), "evaluation_windows": 4}
    plan = planned(text, min_speedup=1.3, **settings)
    assert min(speeds(plan).values()) >= 1.3
    with pytest.raises(PlanError, match="cannot be met together: within the limit on time"):
        planned(text, min_speedup=1.6, **{**settings, "max_perplexity_increase": 1e-4})


@pytest.mark.parametrize(("limit", "is_given"), [({}, True), ({"min_speedup": 1.1, "phase": "prefill"}, False)])
def test_the_cost_of_multiples_is_given_where_no_speed_is_asked_for(
    limit: dict[str, Any], is_given: bool, text: str
) -> None:
    """A plan with a limit on time costs more than a free one of its size for other reasons than its multiples."""
    settings = {"calibration": text, "windows": 4, "length": 64, "across_depth": False, "rank_multiple": 8}
    forecast = basis_sharing.plan(
        PICO["llama"](), 0.3, tokenizer=pico_tokenizer(), baselines=(), **{**settings, **limit}
    )
    assert (forecast.unrounded_loss is not None) is is_given
    _, result = basis_sharing.compress(
        PICO["llama"](), 0.3, tokenizer=pico_tokenizer(), refit="never", **{**settings, **limit}
    )
    assert any("in multiples of 8 cost" in note for note in result.notes) is is_given


def test_what_cannot_be_met_says_what_can(text: str) -> None:
    with pytest.raises(
        PlanError, match=r"--min-speedup 9 \(prefill of .*\) cannot be met: the best possible"
    ) as caught:
        planned(text, min_speedup=9, phase="prefill")
    best = str(caught.value).rstrip(".").split()[-1]
    assert speeds(planned(text, min_speedup=best, phase="prefill"))["prefill"] >= float(best)
    with pytest.raises(PlanError, match="met by the original already"):
        planned(text, min_speedup=1)


def test_a_device_that_is_not_here_needs_a_file_of_its_times(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--for mps: this machine has no mps to measure times on: give --times"):
        planned(text, ratio=0.2, runs_on="mps")
    file = tmp_path / "times.json"
    planned(text, ratio=0.2, times=file)
    with pytest.raises(RecipeError, match=r"were measured on .*, not with --for mps"):
        planned(text, ratio=0.2, times=file, runs_on="mps")
    there = tmp_path / "there.json"
    there.write_text(file.read_text().replace('"device": "cpu"', '"device": "mps"'))
    before = there.read_text()
    plan = planned(text, ratio=0.2, times=there, runs_on="mps", tokens=128)
    assert speeds(plan) == speeds(planned(text, ratio=0.2, tokens=128))
    assert there.read_text() == before


def test_a_plan_for_size_alone_says_that_it_is_slower(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(products, "measured_operations", lambda ops, *_, **__: dict.fromkeys(ops, Measured(1e-6)))
    settings: dict[str, Any] = {"calibration": text, "windows": 4, "length": 64, "times": tmp_path / "times.json"}
    _, result = basis_sharing.compress(PICO["llama"](), 0.2, tokenizer=pico_tokenizer(), refit="never", **settings)
    notes = [note for note in result.notes if "is expected to be slower than the original's" in note]
    assert [note.split()[0] for note in notes] == ["prefill", "decode"]


def test_a_limit_that_the_last_measurement_misses_is_named() -> None:
    time = Time(TimeTable(TimedOn("cpu", "here", 1, "float32", "2", 1), CPU), Workload("prefill", 64), 1.0)
    limits = [TimeLimit(time, 0.5, "--min-speedup 2 (prefill of 64 tokens)", as_speed=True)]

    def sentences(seconds: float) -> list[str]:
        return missed([PredictedSpeed(phase="prefill", tokens=64, batch=1, original=1.0, seconds=seconds)], limits)

    assert sentences(0.502) == []
    assert sentences(0.55) == [
        "--min-speedup 2 (prefill of 64 tokens) may be missed: measured again, the plan takes 10.0% longer than that."
    ]
