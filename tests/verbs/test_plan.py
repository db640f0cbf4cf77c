"""What compression will cost, before anything is compressed."""

import json
from pathlib import Path
from typing import Any

import pytest

import basis_sharing
from basis_sharing.cli.main import main
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.plans.plan import Plan
from basis_sharing.reports.forecast_figure import draw_forecast
from basis_sharing.reports.table import Table
from basis_sharing.reports.tables.forecast import forecast_tables
from basis_sharing.results.forecast import Forecast
from basis_sharing.verbs.plan import RATIOS
from pico import PICO, pico_tokenizer, save_pico

SETTINGS: dict[str, Any] = {"windows": 6, "length": 64, "calibration_dtype": "float32"}


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    """A model whose blocks have the same weights, so that sharing pays."""
    model = PICO["llama"]()
    for layer in model.model.layers[1:]:
        layer.load_state_dict(model.model.layers[0].state_dict())
    return basis_sharing.plan(model, 0.3, tokenizer=pico_tokenizer(), **SETTINGS)


def test_every_method_has_a_curve_over_all_ratios(forecast: Forecast) -> None:
    curves = {
        method: [p for p in forecast.points if p.method == method] for method in {p.method for p in forecast.points}
    }
    assert set(curves) == {"auto", "basis-sharing", "svd-llm", "asvd", "fwsvd", "svd"}
    for points in curves.values():
        assert [p.loss for p in points] == sorted(p.loss for p in points)
    assert len(curves["auto"]) == len(RATIOS)
    for point in curves["auto"]:
        rivals = [
            p for method, ps in curves.items() if method != "auto" for p in ps if p.parameters <= point.parameters
        ]
        assert all(point.loss <= rival.loss * (1 + 1e-6) for rival in rivals)


def test_what_sharing_gains_is_told(forecast: Forecast) -> None:
    assert forecast.plan.prediction is not None
    assert forecast.unshared_loss is not None
    assert forecast.unshared_loss > 1.05 * forecast.plan.prediction.loss


def test_without_sharing_there_is_nothing_to_tell() -> None:
    found = basis_sharing.plan(
        PICO["llama"](), 0.3, tokenizer=pico_tokenizer(), across_depth=False, baselines=(), **SETTINGS
    )
    assert found.unshared_loss is None
    assert {point.method for point in found.points} == {"auto"}


def test_with_a_work_folder_another_ratio_measures_nothing_again(tmp_path: Path) -> None:
    model, stages = save_pico("llama", tmp_path / "model"), list[str]()
    settings = {**SETTINGS, "work": tmp_path / "work", "progress": lambda event: stages.append(event.stage)}
    first = basis_sharing.plan(model, 0.3, **settings)
    assert "predicting svd-llm" in stages
    stages.clear()
    second = basis_sharing.plan(model, 0.4, **settings)
    assert not [stage for stage in stages if "predicting" in stage or "measuring" in stage]
    assert second.points == first.points


def test_a_plan_for_some_roles_is_executed_by_a_plain_compress(tmp_path: Path) -> None:
    model = save_pico("gpt2", tmp_path / "model")
    found = basis_sharing.plan(model, 0.4, roles=("up", "down"), baselines=(), **SETTINGS)
    plan = found.plan
    assert plan.ratio == pytest.approx(0.4, abs=2e-3)
    assert {name.split(".")[-2] for entry in plan.entries for name in entry.members} == {"mlp"}
    plan.write(tmp_path / "plan.json")
    _, result = basis_sharing.compress(model, plan=tmp_path / "plan.json", **SETTINGS)
    assert [e.members for e in result.entries] == [e.members for e in plan.entries]
    expected = sum(entry.loss or 0 for entry in plan.entries)
    assert sum(e.entry.loss or 0 for e in result.entries) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "basis-sharing"])
def test_only_the_roles_asked_for_are_compressed(method: str, tmp_path: Path) -> None:
    model = save_pico("llama", tmp_path / "model")
    compressed, result = basis_sharing.compress(
        model, 0.3, method=method, roles=("gate", "up"), output=tmp_path / "out", **SETTINGS
    )
    assert {name.rpartition(".")[2] for entry in result.entries for name in entry.members} <= {"gate_proj", "up_proj"}
    assert result.ratio_reached == pytest.approx(0.3, abs=0.02)
    assert compressed.model.layers[0].self_attn.q_proj.weight.shape == (64, 64)


def test_roles_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    model = save_pico("llama", tmp_path / "model")
    with pytest.raises(ModelError, match=r"no projections of role 'qkv': choose from q, k, v, o, gate, up, down"):
        basis_sharing.compress(model, 0.3, roles=("qkv",), **SETTINGS)
    with pytest.raises(RecipeError, match="--roles has no meaning for a plan"):
        basis_sharing.compress(model, plan=tmp_path / "plan.json", roles=("q",))


def test_the_verb_writes_plan_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_pico("llama", tmp_path / "model")
    arguments = [
        "plan",
        str(model),
        "--ratio",
        "0.2",
        "-o",
        str(tmp_path / "p.json"),
        "--windows",
        "6",
        "--length",
        "64",
    ]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "The plan removes 20.0" in shown
    plan = Plan.read(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["planned_for"]["structure"]
    assert ("Without sharing across layers" in shown) == any(
        len({name.split(".")[2] for name in entry.members}) > 1 for entry in plan.entries
    )
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_curves_against_bytes_have_plain_rounding_beside_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SETTINGS, "bits": 3.4, "scale_group": 32, "across_depth": False, "rank_multiple": 1}
    found = basis_sharing.plan(PICO["llama"](), tokenizer=pico_tokenizer(), baselines=(), embedding_bits=8, **settings)
    curves = {
        name: {point.bits: point for point in found.bit_points if point.method == name}
        for name in ("auto", "bits alone", "ranks alone", "rtn", "gptq")
    }
    assert sum(map(len, curves.values())) == len(found.bit_points)
    for name in ("bits alone", "ranks alone", "rtn", "gptq"):
        for bits, point in curves[name].items():
            assert curves["auto"][bits].loss <= point.loss + 1e-4
            assert curves["auto"][bits].bytes <= point.bytes or name != "rtn"
    assert all(curves["gptq"][bits].loss < point.loss for bits, point in curves["rtn"].items())
    # Rounded to 4 bits as rtn does it, the model has just these bytes.
    _, result = basis_sharing.compress(
        PICO["llama"](), tokenizer=pico_tokenizer(), method="rtn", bits=4, embedding_bits=8, scale_group=32
    )
    assert result.after.bytes_in_memory in {point.bytes for point in curves["rtn"].values()}
    assert found.plan.prediction is not None
    assert found.unranked_loss is None or found.unranked_loss >= found.plan.prediction.loss
    draw_forecast(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    (table,) = [one for one in forecast_tables(found) if isinstance(one, Table) and "by bits" in str(one.title)]
    assert len(table.rows) == len(curves["auto"])


def test_without_a_limit_on_bytes_there_are_no_such_curves(forecast: Forecast) -> None:
    assert forecast.bit_points == ()
