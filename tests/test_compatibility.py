"""What 0.1.0 wrote goes on working, and what a newer version wrote is refused in a sentence."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from basis_sharing.checkpoint.folder import check_folder
from basis_sharing.errors import BasisSharingError, CheckpointError, PlanError, ResultError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan, dense_parameters
from basis_sharing.results.base import Result
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.rollout import Rollout
from basis_sharing.results.study import StudyResult
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import Entry
from forks import fresh

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
CHECKPOINTS = ("auto", "basis-sharing")
IDS = torch.arange(24)[None]
RESULTS: dict[str, type[Result]] = {
    "auto/basis_sharing.json": CompressionResult,
    "basis-sharing/basis_sharing.json": CompressionResult,
    "recovered.json": CompressionResult,
    "comparison.json": Comparison,
    "benchmark.json": BenchmarkResult,
    "study.json": StudyResult,
    "rollout.json": Rollout,
}
Data = dict[str, Any]


@torch.no_grad()
def logits(folder: Path, **options: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def stored_logits(name: str) -> torch.Tensor:
    found: torch.Tensor = load_file(OLD / f"{name}-logits.safetensors")["logits"]
    return found


def factors(entries: Iterable[Entry]) -> list[tuple[tuple[str, ...], int, str]]:
    """Return members, rank and form of entries, all of which are factors."""
    found = []
    for entry in entries:
        assert isinstance(entry, Factors)
        found.append((entry.members, entry.rank, entry.form))
    return found


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """The decoder of the model that all of it was made from."""
    config = AutoConfig.from_pretrained(OLD / "auto")
    del config.quantization_config
    with torch.device("meta"):
        return describe(AutoModelForCausalLM.from_config(config))


def edited(source: Path, target: Path, edit: Callable[[Data], object]) -> Path:
    """Write a JSON file with an edit elsewhere."""
    data = json.loads(source.read_text())
    edit(data)
    target.write_text(json.dumps(data))
    return target


def test_a_plan_of_version_1_is_what_was_executed(decoder: Decoder) -> None:
    plan = Plan.read(OLD / "plan.json")
    plan.check(decoder)
    executed = CompressionResult.read(OLD / "auto" / "basis_sharing.json").entries
    assert factors(plan.entries) == factors(done.entry for done in executed)
    assert plan.removed_fraction(decoder) == pytest.approx(plan.ratio, abs=1e-9)
    assert plan.parameters(decoder) < dense_parameters(decoder)
    assert sum(entry.loss or 0 for entry in plan.entries) == pytest.approx(
        plan.prediction.loss if plan.prediction else 0
    )


def test_a_plan_of_version_1_is_written_as_version_2(decoder: Decoder, tmp_path: Path) -> None:
    plan = Plan.read(OLD / "plan.json")
    plan.write(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["version"] == 2
    assert {entry["kind"] for entry in data["entries"]} == {"factors"}
    assert Plan.read(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_format_1_load_and_are_saved_as_format_2(name: str, tmp_path: Path) -> None:
    check_folder(OLD / name)
    torch.testing.assert_close(logits(OLD / name), stored_logits(name), rtol=1e-5, atol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(OLD / name)
    model.save_pretrained(tmp_path / "new")
    quantization = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    assert quantization["format_version"] == 2
    assert "groups" not in quantization
    assert {entry["kind"] for entry in quantization["entries"]} == {"factors"}
    check_folder(tmp_path / "new")
    assert torch.equal(logits(tmp_path / "new"), logits(OLD / name))
    old, new = (load_file(folder / "model.safetensors") for folder in (OLD / name, tmp_path / "new"))
    assert old.keys() == new.keys()
    assert all(torch.equal(tensor, new[key]) for key, tensor in old.items())


REMOTE = """
import pathlib, sys, torch
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [path for path in sys.path if not path.endswith("/src")]
try:
    import basis_sharing
    sys.exit("the package is importable, so this proves nothing")
except ImportError:
    pass
from transformers import AutoModelForCausalLM
for folder in map(pathlib.Path, sys.argv[1:]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(24)[None], use_cache=False).logits, folder / "logits.pt")
"""


def test_the_files_they_carry_load_them_without_the_package(tmp_path: Path) -> None:
    folders = {}
    for name in CHECKPOINTS:
        folders[tmp_path / name] = name
        shutil.copytree(OLD / name, tmp_path / name)
        AutoModelForCausalLM.from_pretrained(OLD / name).save_pretrained(tmp_path / f"{name}-2")
        folders[tmp_path / f"{name}-2"] = name
    done = fresh(REMOTE, *folders, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "auto").glob("*.py"))) == 1
    assert len(list((tmp_path / "auto-2").glob("*_basis_sharing.py"))) == 10
    for folder, name in folders.items():
        torch.testing.assert_close(torch.load(folder / "logits.pt"), stored_logits(name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file", RESULTS)
def test_every_result_reads_and_is_written_in_the_present_schema(file: str, tmp_path: Path) -> None:
    kind = RESULTS[file]
    result = kind.read(OLD / file)
    result.write(tmp_path / "result.json")
    assert kind.read(tmp_path / "result.json") == result
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["schema_version"] == kind.SCHEMA_VERSION
    if kind is CompressionResult:
        old = json.loads((OLD / file).read_text())
        groups = [(tuple(group["members"]), group["rank"], group["form"]) for group in old["groups"]]
        assert factors(e.entry for e in CompressionResult.read(OLD / file).entries) == groups
        assert (written["repair"] is None) == (old.get("propagation") is None)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith("."), text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("file", RESULTS)
def test_a_result_of_a_newer_version_is_refused(file: str, tmp_path: Path) -> None:
    newer = edited(OLD / file, tmp_path / "new.json", lambda data: data.update(schema_version=99))
    with pytest.raises(ResultError, match="has schema version 99") as error:
        RESULTS[file].read(newer)
    assert one_sentence(error.value).endswith("update basis-sharing.")


def test_a_plan_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    newer = edited(OLD / "plan.json", tmp_path / "new.json", lambda data: data.update(version=99))
    with pytest.raises(PlanError, match="version 99") as error:
        Plan.read(newer)
    assert one_sentence(error.value).endswith("update basis-sharing.")


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    shutil.copytree(OLD / "auto", folder)
    config = folder / "config.json"
    edited(config, config, lambda data: data["quantization_config"].update(format_version=99))
    refusals: list[BaseException] = []
    for attempt in (check_folder, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((BasisSharingError, ValueError), match="format version 99") as error:
            attempt(folder)
        refusals.append(error.value)
    assert isinstance(refusals[0], CheckpointError)
    assert all(one_sentence(error).endswith("update basis-sharing.") for error in refusals)


def unknown_field(data: Data) -> None:
    data["groups"][2]["colour"] = "red"


def twice_in_a_group(data: Data) -> None:
    data["groups"][2]["members"] *= 2


def twice_in_the_plan(data: Data) -> None:
    data["groups"][3]["members"] = data["groups"][2]["members"]


def dense_form(data: Data) -> None:
    data["groups"][2]["form"] = "dense"


def no_rank(data: Data) -> None:
    del data["groups"][2]["rank"]


@pytest.mark.parametrize(
    ("edit", "place", "what"),
    [
        (unknown_field, "entries.2", "unknown field 'colour'"),
        (twice_in_a_group, "entries.2", "is twice in one entry"),
        (dense_form, "entries.2", "in the form 'dense'"),
        (no_rank, "entries.2", "has no rank"),
        (twice_in_the_plan, "the plan does not fit", "belongs to two entries"),
    ],
)
def test_an_edit_that_version_2_forbids_is_one_sentence(
    edit: Callable[[Data], None], place: str, what: str, decoder: Decoder, tmp_path: Path
) -> None:
    plan = edited(OLD / "plan.json", tmp_path / "plan.json", edit)
    with pytest.raises(PlanError) as error:
        Plan.read(plan).check(decoder)
    sentence = one_sentence(error.value)
    assert place in sentence
    assert what in sentence
