"""The plan as data: files, mistakes in them, and accounting."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.errors import PlanError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.migrations import PLAN_VERSION
from basis_sharing.plans.plan import Plan, PlannedFor, Prediction, dense_parameters, spans_blocks, structure_of
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.surgery import projection_parameters
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.none import Unweighted
from pico import PICO

Q, K, DOWN = (f"model.layers.0.{path}" for path in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))


def decoder_of(name: str = "llama") -> Decoder:
    return describe(PICO[name]())


def first(plan: Plan) -> Factors:
    entry = plan.entries[0]
    assert isinstance(entry, Factors)
    return entry


def sample(decoder: Decoder) -> Plan:
    return Plan(
        method="auto",
        ratio=0.25,
        gradients=True,
        planned_for=PlannedFor(model="a model", fingerprint="abc", structure=structure_of(decoder)),
        prediction=Prediction(loss=0.5, scale=0.7, scale_error=0.01, text="python-docs:heldout"),
        entries=(
            Factors(members=(Q, K), rank=12, form="pivoted", loss=0.125),
            Factors(members=(DOWN,), rank=3),
        ),
    )


def test_a_plan_survives_a_file(tmp_path: Path) -> None:
    decoder = decoder_of()
    for plan in (sample(decoder), Plan(method="svd", ratio=0.5, entries=sample(decoder).entries)):
        plan.write(tmp_path / "plan.json")
        assert Plan.read(tmp_path / "plan.json") == plan
        plan.check(decoder)
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"members"' in line for line in lines) == 2, "one entry per line"


def test_a_plan_edited_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    sample(decoder_of()).write(path)
    path.write_text(path.read_text().replace('"rank": 12', '"rank": 20'))
    assert first(Plan.read(path)).rank == 20
    entries = [{"kind": "factors", "members": [Q], "rank": 4}]
    path.write_text(json.dumps({"method": "svd", "ratio": 0.2, "entries": entries}))
    assert Plan.read(path).entries == (Factors(members=(Q,), rank=4, form="plain", loss=None),)


@pytest.mark.parametrize("version", [{}, {"version": 1}])
def test_a_plan_of_version_1_has_groups_that_are_read_as_factors(version: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    group = {"members": [Q, K], "rank": 4, "form": "pivoted", "loss": 0.5}
    path.write_text(json.dumps({**version, "method": "auto", "ratio": 0.2, "groups": [group]}))
    plan = Plan.read(path)
    assert plan.version == PLAN_VERSION
    assert plan.entries == (Factors(members=(Q, K), rank=4, form="pivoted", loss=0.5),)
    plan.write(path)
    assert Plan.read(path) == plan


def test_the_plan_that_0_1_0_wrote_is_read() -> None:
    plan = Plan.read(Path(__file__).parents[1] / "fixtures" / "0.1.0" / "plan.json")
    assert plan.entries
    assert all(isinstance(entry, Factors) for entry in plan.entries)
    assert plan.prediction is not None
    assert plan.prediction.loss == pytest.approx(sum(entry.loss or 0 for entry in plan.entries))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data["entries"][1].update(rank=0), f"at entries.1: the entry of {DOWN} has rank 0; a positive"),
        (lambda data: data["entries"][0].update(rank="many"), f"at entries.0: the entry of {Q} has rank 'many'"),
        (lambda data: data["entries"][0].update(members=[]), "at entries.0: an entry of kind factors names no members"),
        (lambda data: data["entries"][0].update(members=Q), "at entries.0: an entry of kind factors has the members"),
        (lambda data: data["entries"][0].update(members=[Q, 3]), "at entries.0: an entry of kind factors names no"),
        (lambda data: data["entries"][0].update(form="round"), f"at entries.0: the entry of {Q} is stored in the form"),
        (lambda data: data["entries"][0].update(loss="little"), f"at entries.0: the entry of {Q} has the loss"),
        (lambda data: data["entries"][0].update(colour="red"), "has the unknown field 'colour'"),
        (lambda data: data["entries"][0].update(kind="magic"), "at entries.0: unknown kind of entry 'magic'"),
        (lambda data: data["entries"][0].pop("rank"), "at entries.0: an entry of kind factors has no rank"),
        (lambda data: data["entries"].append("nothing"), "at entries.2: an entry is 'nothing'; a mapping"),
        (lambda data: data.pop("method"), "at method: Field required"),
        (lambda data: data.update(method="magic"), "unknown method 'magic'"),
        (lambda data: data.update(version=3), "it has version 3, and this version of basis-sharing reads up to 2"),
        (lambda data: data.update(version="two"), "its version is 'two'; a positive integer is needed"),
        (lambda data: data.update(version=0), "its version is 0; a positive integer is needed"),
        (lambda data: data.update(version=1), "a plan of version 1 lists groups"),
        (lambda data: data.pop("entries"), "at entries: Field required"),
    ],
)
def test_damage_is_located_in_one_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    path = tmp_path / "plan.json"
    data = json.loads(sample(decoder_of()).model_dump_json())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError) as caught:
        Plan.read(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00nonsense"])
def test_files_that_are_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json (is|cannot be used: it is) not") as caught:
        Plan.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([(("model.layers.9.self_attn.q_proj",), 4)], "model.layers.9.self_attn.q_proj, which this model does not"),
        ([(("lm_head",), 4)], "lm_head, which this model does not"),
        ([((Q,), 4), ((Q, K), 4)], f"{Q} belongs to two entries"),
        ([((Q, DOWN), 4)], "mixes inputs of [64, 96] features"),
        ([((Q,), 65)], "has rank 65, but its matrices have at most 64"),
        ([((K,), 33)], "has rank 33, but its matrices have at most 32"),
        ([((K, "model.layers.1.self_attn.k_proj"), 65)], "has rank 65, but its matrices have at most 64"),
    ],
)
def test_plans_that_do_not_fit(entries: list[tuple[tuple[str, ...], int]], sentence: str) -> None:
    plan = Plan(method="svd", ratio=0.2, entries=tuple(Factors(members=names, rank=rank) for names, rank in entries))
    with pytest.raises(PlanError) as caught:
        plan.check(decoder_of())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_projection_twice_in_one_entry_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{Q} is twice in one entry"):
        Factors(members=(Q, Q), rank=4)


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="has no entries: nothing would be compressed"):
        Plan(method="svd", ratio=0.2, entries=()).check(decoder_of())


def test_what_spans_blocks() -> None:
    decoder = decoder_of()
    assert not spans_blocks(Factors(members=(Q, K), rank=4), decoder)
    assert spans_blocks(Factors(members=(K, "model.layers.1.self_attn.k_proj"), rank=4), decoder)


def test_the_highest_rank_fits() -> None:
    pair = (K, "model.layers.1.self_attn.k_proj")
    entries = (Factors(members=pair, rank=64), Factors(members=(Q,), rank=64))
    Plan(method="svd", ratio=0.2, entries=entries).check(decoder_of())


def test_a_plan_for_another_model_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="was made for a model, whose projections have other names or shapes"):
        sample(decoder_of()).check(decoder_of("qwen3"))
    structures = {name: structure_of(decoder_of(name)) for name in ("llama", "qwen3", "gpt2", "mistral")}
    assert structures["llama"] == structures["mistral"], "weights and settings outside projections do not count"
    assert len(set(structures.values())) == 3


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral"])
def test_accounting_is_that_of_the_installed_model(name: str, form: Any) -> None:
    model = PICO[name]()
    decoder = describe(model).without_experts
    plan = uniform_plan(
        decoder,
        method="svd",
        ratio=Fraction("0.3"),
        group_size=2,
        shared_roles=decoder.family.shared_roles,
        form=form,
    )
    plan = plan.model_copy(update={"entries": plan.entries[:-3]})  # some stay dense
    names = [p.name for p in decoder.projections]
    assert dense_parameters(decoder) == projection_parameters(model, names)
    for outcome in execute(model, decoder, plan, Unweighted()):
        assert outcome.notes == ()
        install(model, outcome)
    assert plan.parameters(decoder) == projection_parameters(model, names)
    assert plan.removed_fraction(decoder) == 1 - projection_parameters(model, names) / dense_parameters(decoder)
    multiplied = sum(
        module.weight.numel()
        for path in names
        for module in (
            [model.get_submodule(path)]
            if not hasattr(model.get_submodule(path), "basis")
            else [model.get_submodule(path).basis, model.get_submodule(path).coeff]
        )
    )
    assert plan.multiplications(decoder) == multiplied


def test_predictions_are_scaled_by_what_was_measured() -> None:
    assert Prediction(loss=0.5).nats_per_token == 0.5
    assert Prediction(loss=0.5, scale=0.8).nats_per_token == 0.4
