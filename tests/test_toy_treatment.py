"""A treatment from outside the package, ``tests/toy``, does all that factors do, with nothing else touched."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import basis_sharing
from basis_sharing.checkpoint.folder import check_folder, entries_in
from basis_sharing.cli.main import main
from basis_sharing.costs.base import COSTS, shapes_of
from basis_sharing.errors import CheckpointError, PlanError, RecipeError
from basis_sharing.exports.dense import dense_model
from basis_sharing.models.decoder import describe
from basis_sharing.plans.plan import Plan
from basis_sharing.reports.layout import REST, layout_of
from basis_sharing.reports.rank_figure import rank_picture, sharing_picture
from basis_sharing.results.compression import CompressionResult
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.format_basis_sharing import FormatError, entry_from, register_entry
from basis_sharing.treatments.base import TREATMENTS, register
from forks import Ended, fresh
from pico import PICO, save_with_texts, shortened, weight_bytes
from toy.entry import TENSORS, Toy
from toy.layers import ToyLinear
from toy.treatment import SHARES, ToyTreatment

BUILT_IN = "bits, embeddings, expert-factors, experts, factors"
IDS = torch.arange(24)[None]
BUDGET = 0.625  # of the original's bytes: in fp32 eight bits pay, and a few inputs alone do not suffice
BLOCKS = 3
KINDS = {"beside": ("factors", "toy"), "alone": ("toy",)}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_with_texts(tmp_path_factory.mktemp("toy"), blocks=BLOCKS)
    for name in KINDS:
        compress(root, root / name, name)
    return root


def original() -> Any:
    """Return the model that is compressed."""
    return shortened(PICO["llama"](), BLOCKS)


def compress(space: Path, output: Path, name: str, **changes: Any) -> tuple[Any, CompressionResult]:
    size = sum(p.nbytes for p in original().parameters())
    settings: dict[str, Any] = {
        "max_bytes": int(BUDGET * size),
        "treatments": KINDS[name],
        "calibration_dtype": "float32",
    }
    text = {"calibration": str(space / "text.txt"), "windows": 20, "length": 32}
    return basis_sharing.compress(space / "model", output=output, **{**settings, **text, **changes})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def result_of(folder: Path) -> CompressionResult:
    return CompressionResult.read(folder / "basis_sharing.json")


@pytest.mark.parametrize("name", KINDS)
def test_it_is_planned_beside_factors_and_alone(name: str, space: Path) -> None:
    result = result_of(space / name)
    kinds = [entry.entry.kind for entry in result.entries]
    assert set(kinds) == set(KINDS[name])
    assert all(len(e.members) == 1 for e in result.entries if e.entry.kind == "toy")
    assert result.after.bytes_in_memory <= BUDGET * result.before.bytes_in_memory
    assert result.prediction is not None
    # What was carried out loses what was measured for the plan.
    assert sum(e.entry.loss or 0 for e in result.entries) == pytest.approx(result.prediction.loss, rel=1e-3)


def test_together_they_lose_less_than_either(space: Path) -> None:
    _, factors = compress(space, space / "factors", "beside", treatments=("factors",))
    losses = [result_of(space / name).prediction.loss for name in ("beside", "alone")]  # type: ignore[union-attr]
    assert factors.prediction is not None
    assert losses[0] < min(losses[1], factors.prediction.loss)


def test_it_is_priced_in_every_currency(space: Path) -> None:
    decoder = describe(original())
    projection = decoder.by_name["model.layers.0.mlp.down_proj"]
    entry = Toy(members=(projection.name,), count=24, tensors=TENSORS)
    prices = {name: cost(itemsize=2).of([projection], entry) for name, cost in COSTS.items()}
    assert prices["parameters"] == 24 * 64 + 64
    assert prices["bytes"] == 24 * 64 + 4 * 64 + 4 * 24
    assert prices["multiplications"] == 24 * 64
    result = result_of(space / "alone")
    carried_out = Plan(method="auto", ratio=0, entries=tuple(e.entry for e in result.entries))
    assert result.after.projection_parameters == carried_out.parameters(decoder)
    assert result.after.projection_multiplications == carried_out.multiplications(decoder)
    cost = COSTS["bytes"](itemsize=4)
    saved = cost.dense(decoder.projections) - carried_out.cost(decoder, cost)
    assert result.before.bytes_in_memory - result.after.bytes_in_memory == saved


@pytest.mark.parametrize("name", KINDS)
def test_it_is_saved_and_loaded_bit_by_bit(name: str, space: Path, tmp_path: Path) -> None:
    folder = space / name
    check_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    for entry in entries_in(folder):
        if entry.kind == "toy":
            assert tensors[f"{entry.owner}.weight"].dtype == torch.int8
            assert tensors[f"{entry.owner}.scales"].dtype == torch.float32
    loaded = load(folder)
    loaded.save_pretrained(tmp_path / "small", max_shard_size="20KB")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    again = load(tmp_path / "small")
    again.save_pretrained(tmp_path / "one")
    assert torch.equal(logits(again), logits(loaded))
    resaved = load_file(tmp_path / "one" / "model.safetensors")
    assert resaved.keys() == tensors.keys()
    assert all(torch.equal(resaved[key], tensor) for key, tensor in tensors.items())
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    toys = [module for module in half.modules() if isinstance(module, ToyLinear)]
    assert {(m.weight.dtype, m.scales.dtype) for m in toys} == {(torch.int8, torch.float32)}
    assert torch.allclose(logits(half).float(), logits(loaded), atol=0.15 * logits(loaded).abs().max().item())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", ["factorizing", "refitting to the compressed flow"])
def test_it_is_resumed(stage: str, space: Path, tmp_path: Path) -> None:
    def kill(event: Progress) -> None:
        if event.stage == stage and 2 * event.done >= event.total:
            raise Killed

    with pytest.raises(Killed):
        compress(space, tmp_path / "out", "beside", progress=kill)
    stages: list[str] = []
    compress(space, tmp_path / "out", "beside", progress=lambda event: stages.append(event.stage))
    assert weight_bytes(tmp_path / "out") == weight_bytes(space / "beside")
    if stage == "refitting to the compressed flow":
        assert "factorizing" not in stages


LOADER = """
import sys
{imports}
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code={remote})
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(24)[None], use_cache=False).logits, sys.argv[2])
"""


def load_elsewhere(folder: Path, target: Path, imports: str, *, remote: bool = False) -> Ended:
    path = [Path(basis_sharing.__file__).parents[1]]
    code = LOADER.format(imports=imports, remote=remote)
    return fresh(code, folder, target, cwd=target.parent, path=path).wait()


def test_a_process_that_imports_it_loads_it(space: Path, tmp_path: Path) -> None:
    done = load_elsewhere(space / "beside", tmp_path / "logits.pt", "import toy")
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(load(space / "beside")))


@pytest.mark.parametrize(("imports", "remote"), [("import basis_sharing", False), ("", True)])
def test_a_process_that_does_not_is_told_so(imports: str, remote: bool, space: Path, tmp_path: Path) -> None:
    done = load_elsewhere(space / "beside", tmp_path / "logits.pt", imports, remote=remote)
    assert done.returncode != 0
    sentence = done.stderr.strip().splitlines()[-1]
    assert f"unknown kind of entry 'toy', known are {BUILT_IN}: update basis-sharing, or" in sentence


def test_it_is_exported_dense(space: Path) -> None:
    loaded = load(space / "beside")
    dense = dense_model(loaded)
    assert type(dense) is type(original())
    assert not any(isinstance(module, ToyLinear) for module in dense.modules())
    torch.testing.assert_close(logits(dense), logits(loaded), rtol=1e-4, atol=1e-4)


def test_it_is_in_the_layout_and_in_the_pictures(space: Path) -> None:
    result = result_of(space / "beside")
    layout = layout_of(space / "beside", result)
    cells = {cell.projection.name: cell for cell in layout.cells}
    toys = [entry for entry in result.entries if entry.entry.kind == "toy"]
    for entry in toys:
        cell = cells[entry.members[0]]
        assert cell.label == entry.entry.label
        assert cell.kept in SHARES
    assert sum(layout.before.values()) == result.before.bytes_in_memory
    assert sum(layout.after.values()) == result.after.bytes_in_memory
    buffers = sum(
        tensor.shape[0] * 4
        for entry in result.entries
        for tensor in entry.entry.stored(shapes_of([cells[name].projection for name in entry.members]))
        if tensor.buffer
    )
    assert layout.after[REST] - layout.before[REST] == buffers
    for picture in (rank_picture(layout), sharing_picture(layout, result)):
        assert b"<svg" in picture.rendered("svg")


def test_it_is_inspected_and_reported(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(space / "beside")])
    assert stop.value.code == 0
    assert f"{result_of(space / 'beside').after.bytes_in_memory:,}" in capsys.readouterr().out
    basis_sharing.report(space / "beside", output=tmp_path / "report.html")
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_two_treatments_of_one_name_are_refused() -> None:
    class Other(ToyTreatment):
        pass

    with pytest.raises(
        RecipeError, match=r"^two treatments are called 'toy' \(.*\): rename one, or do not import it\.$"
    ):
        register(Other())
    assert type(TREATMENTS["toy"]) is ToyTreatment
    with pytest.raises(ValueError, match=r"^two kinds of entries are called 'toy' \(.*\): rename one\.$"):

        @register_entry
        class Another(Toy):
            pass


def test_an_unknown_treatment_is_refused_before_anything_is_measured(space: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(RecipeError, match=r"^unknown treatment 'pruning': choose from .*factors.*\.$"):
        compress(
            space,
            tmp_path / "out",
            "beside",
            treatments=("pruning",),
            progress=lambda event: stages.append(event.stage),
        )
    assert set(stages) <= {"loading"}
    assert not list(tmp_path.iterdir())


def test_an_entry_of_unknown_kind_is_one_sentence(space: Path, tmp_path: Path) -> None:
    expected = f"unknown kind of entry 'lace', known are {BUILT_IN}, toy: update basis-sharing, or import"
    plan = Plan(method="auto", ratio=0.3, entries=tuple(e.entry for e in result_of(space / "beside").entries))
    plan.write(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert Plan.read(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text(text.replace('"kind": "toy"', '"kind": "lace"'))
    with pytest.raises(PlanError, match=expected) as in_plan:
        Plan.read(tmp_path / "plan.json")
    loaded = load(space / "beside")
    loaded.save_pretrained(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["quantization_config"]["entries"][0]["kind"] = "lace"
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=expected) as in_folder:
        check_folder(tmp_path / "folder")
    with pytest.raises(FormatError, match=expected) as in_transformers:
        load(tmp_path / "folder")
    for error in (in_plan, in_folder, in_transformers):
        assert str(error.value).endswith(".")
        assert "\n" not in str(error.value)


def test_a_dtype_that_its_kind_does_not_know_is_refused() -> None:
    data: dict[str, Any] = {"members": ["a"], "tensors": {"weight": {"dtype": "float4"}}}
    for kind, rest in (("toy", {"count": 3}), ("factors", {"rank": 3})):
        with pytest.raises(FormatError, match=f"the entry of a has weight in float4, which kind {kind} of this"):
            entry_from({"kind": kind, **data, **rest})


def test_what_does_not_fit_a_toy_is_refused(tmp_path: Path) -> None:
    decoder = describe(original())
    names = [p.name for p in decoder.projections if p.role == "q"]
    for entry, sentence in (
        (Toy(members=tuple(names[:2]), count=8), "has 2 members; a toy has one"),
        (Toy(members=(names[0],), count=64), "reads 64 inputs of 64"),
    ):
        with pytest.raises(PlanError, match=sentence):
            Plan(method="auto", ratio=0.3, entries=(entry,)).check(decoder)


def test_its_curves_are_kept_for_another_target(space: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for ratio in (0.2, 0.4):
        changes = {"max_bytes": None, "ratio": ratio, "work": work}
        _, result = compress(space, tmp_path / str(ratio), "alone", **changes)
        assert result.ratio_reached == pytest.approx(ratio, abs=0.02)
    assert np.isfinite([e.entry.loss or 0 for e in result.entries]).all()
