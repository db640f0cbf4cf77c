"""The treatment ``bits``: predicted and real losses, plain presets, and plans that rounding alone cannot beat."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import basis_sharing
from basis_sharing.errors import ModelError, PlanError
from basis_sharing.exports.dense import dense_model
from basis_sharing.models.decoder import describe, weight
from basis_sharing.models.source import load_model, resolve
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Planning
from basis_sharing.results.compression import CompressionResult
from basis_sharing.runtime.entries_basis_sharing import Bits, Factors
from basis_sharing.runtime.format_basis_sharing import FormatError, Grid
from basis_sharing.treatments.rounded import factor_grids_for, grids_for, whole_group
from pico import PICO, TEXT, pico_tokenizer

SETTINGS: dict[str, Any] = {"windows": 6, "length": 64, "across_depth": False, "scale_group": 32, "refit": "never"}


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def compressed(text: str, **settings: Any) -> tuple[Any, CompressionResult]:
    return basis_sharing.compress(
        PICO["llama"](), tokenizer=pico_tokenizer(), calibration=text, **{**SETTINGS, **settings}
    )


def test_groups_divide_the_inputs() -> None:
    assert (whole_group(128, 576), whole_group(64, 576), whole_group(64, 96), whole_group(64, 100)) == (64, 64, 32, 100)
    asked = Planning(widths="4,8", zero_points=False, scale_group=64)
    assert grids_for(asked, 96) == [Grid(8, 32, True), Grid(4, 32, True)]
    assert factor_grids_for(asked, 96) == [Grid(8, 64, True), Grid(4, 64, True)]


def test_in_eight_bits_all_inputs_have_one_scale_unless_a_group_is_asked_for() -> None:
    assert grids_for(Planning(widths="4,8"), 96) == [Grid(8, 96, True), Grid(4, 32)]
    assert factor_grids_for(Planning(widths="4,8"), 96) == [Grid(8, 96, True), Grid(4, 64)]


def test_losses_are_those_that_were_predicted(text: str) -> None:
    _, result = compressed(text, bits=5.2, treatments="bits")
    assert result.prediction is not None
    found = sum(report.entry.loss or 0.0 for report in result.entries)
    assert found == pytest.approx(result.prediction.loss, rel=1e-4)


def test_ranks_are_taken_where_they_beat_bits(text: str) -> None:
    """A plan may use both, and loses no more than one of bits alone; its losses are near those that were expected."""
    losses = {}
    for treatments in ("bits", "factors,bits"):
        _, result = compressed(text, bits=3.3, widths="8,4,3,2", treatments=treatments, rank_multiple=1)
        assert result.prediction is not None
        losses[treatments] = result.prediction.loss
        found = sum(report.entry.loss or 0.0 for report in result.entries)
        assert found == pytest.approx(result.prediction.loss, rel=0.15)
    assert losses["factors,bits"] < losses["bits"]
    assert any(isinstance(report.entry, Factors) and report.entry.basis_grid for report in result.entries)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_presets_round_every_weight(method: str, text: str) -> None:
    model, result = compressed(text, method=method, bits=8, across_depth=True)
    assert {type(report.entry) for report in result.entries} == {Bits}
    decoder = describe(PICO["llama"]())
    assert len(result.entries) == len(decoder.projections)
    p = decoder.projections[0]
    before, after = weight(PICO["llama"](), p).T, model.get_submodule(p.name).weight
    step = before.abs().amax() / 127
    assert 0 < (after - before).abs().max() < (0.8 if method == "rtn" else 3) * step
    assert result.after.parameters == result.before.parameters
    assert result.after.bytes_in_memory < 0.45 * result.before.bytes_in_memory


def test_fewer_bits_than_four_are_offered_where_four_do_not_suffice(text: str) -> None:
    def widths(**target: Any) -> set[int]:
        plan = basis_sharing.plan(
            PICO["llama"](),
            tokenizer=pico_tokenizer(),
            calibration=text,
            baselines=(),
            treatments="bits",
            **target,
            **{name: value for name, value in SETTINGS.items() if name != "refit"},
        ).plan
        return {entry.weight_grid.bits for entry in plan.entries if isinstance(entry, Bits)}

    assert widths(bits=6) <= {8, 4}
    assert min(widths(bits=3.9)) < 4
    with pytest.raises(PlanError, match=r"--bits 2 cannot be met: the best possible, .*, is 3\.\d+"):
        widths(bits=2)


def test_a_plan_says_what_every_weight_is_rounded_to(text: str, tmp_path: Path) -> None:
    forecast = basis_sharing.plan(
        PICO["llama"](), tokenizer=pico_tokenizer(), calibration=text, baselines=(), bits=5, windows=6, length=64
    )
    forecast.plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").entries == forecast.plan.entries


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tensors": {}}, "has to name one member and the bits"),
        ({"tensors": {"weight": {"dtype": "model"}}}, "has to name one member and the bits"),
        ({"tensors": {"weight": {"dtype": "uint4", "group": 16}}, "rounding": "up"}, "is rounded by 'up'"),
        ({"tensors": {"weight": {"dtype": "float4", "group": 16}}}, "float4, which kind bits of this version does not"),
    ],
)
def test_what_is_no_entry(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence):
        Bits(members=("a",), **fields)


def test_groups_that_divide_nothing_are_refused() -> None:
    entry = Bits(members=("a",), tensors={"weight": {"dtype": "uint4", "group": 48}})
    with pytest.raises(FormatError, match="groups of 48 in 100 inputs"):
        entry.fit([(100, 10)])


def test_scales_can_be_trained_afterwards(text: str) -> None:
    model, _ = compressed(text, bits=5, treatments="bits")
    out = model(torch.arange(16)[None], labels=torch.arange(16)[None])
    out.loss.backward()
    scales = [p for name, p in model.named_parameters() if name.endswith(".scales")]
    assert scales
    assert all(p.grad is not None for p in scales)


def test_weights_that_lie_on_a_grid_already_are_noticed(text: str) -> None:
    model = PICO["llama"]()
    _, result = basis_sharing.compress(model, tokenizer=pico_tokenizer(), method="rtn", bits=4, scale_group=32)
    assert not any("grid" in note for note in result.notes)
    dense = dense_model(model)
    _, again = basis_sharing.compress(dense, tokenizer=pico_tokenizer(), method="rtn", bits=4, scale_group=32)
    assert any("lie on a grid of 16 numbers per 32 inputs already" in note for note in again.notes)
    _, ranks = basis_sharing.compress(dense_model(model), 0.2, tokenizer=pico_tokenizer(), method="svd")
    assert not any("grid" in note for note in ranks.notes)


def test_damaged_codes_are_refused_in_words(text: str, tmp_path: Path) -> None:
    compressed(text, method="rtn", bits=4, across_depth=True, output=tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.int32 and name.endswith(".weight"))
    scales = name.replace(".weight", ".scales")
    for damage, sentence in (
        ({name: tensors[name][:, :-1].contiguous()}, "another shape than its config.json says"),
        ({scales: torch.full_like(tensors[scales], torch.nan)}, "contain NaN or infinity: the checkpoint is damaged"),
    ):
        save_file({**tensors, **damage}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=sentence):
            load_model(resolve(tmp_path / "small"))
