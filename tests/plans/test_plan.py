"""The plan as data: files, mistakes in them, and accounting."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.errors import PlanError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import (
    Plan,
    PlanGroup,
    PlannedFor,
    Prediction,
    dense_parameters,
    multiplications,
    stored_parameters,
    structure_of,
)
from basis_sharing.recipe.presets import Weighting
from basis_sharing.runtime.surgery import install_factors, projection_parameters
from basis_sharing.treatments.factors.solve import factorize
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher
from pico import PICO

Q, K, DOWN = (f"model.layers.0.{path}" for path in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))


def decoder_of(name: str = "llama") -> Decoder:
    return describe(PICO[name]())


def sample(decoder: Decoder) -> Plan:
    return Plan(
        method="auto",
        ratio=0.25,
        gradients=True,
        planned_for=PlannedFor(model="a model", fingerprint="abc", structure=structure_of(decoder)),
        prediction=Prediction(loss=0.5, scale=0.7, scale_error=0.01, text="python-docs:heldout"),
        groups=(
            PlanGroup(members=(Q, K), rank=12, form="pivoted", loss=0.125),
            PlanGroup(members=(DOWN,), rank=3),
        ),
    )


def test_a_plan_survives_a_file(tmp_path: Path) -> None:
    decoder = decoder_of()
    for plan in (sample(decoder), Plan(method="svd", ratio=0.5, groups=sample(decoder).groups)):
        plan.write(tmp_path / "plan.json")
        assert Plan.read(tmp_path / "plan.json") == plan
        plan.check(decoder)
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"members"' in line for line in lines) == 2, "one group per line"


def test_a_plan_edited_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    sample(decoder_of()).write(path)
    path.write_text(path.read_text().replace('"rank": 12', '"rank": 20'))
    assert Plan.read(path).groups[0].rank == 20
    path.write_text(json.dumps({"method": "svd", "ratio": 0.2, "groups": [{"members": [Q], "rank": 4}]}))
    assert Plan.read(path).groups == (PlanGroup(members=(Q,), rank=4, form="plain", loss=None),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data["groups"][1].update(rank=0), "at groups.1.rank: Input should be greater than or equal to 1"),
        (lambda data: data["groups"][0].update(rank="many"), "at groups.0.rank"),
        (lambda data: data["groups"][0].update(members=[]), "at groups.0.members"),
        (lambda data: data["groups"][0].update(form="round"), "at groups.0.form"),
        (lambda data: data["groups"][0].update(colour="red"), "at groups.0.colour"),
        (lambda data: data.pop("method"), "at method: Field required"),
        (lambda data: data.update(method="magic"), "unknown method 'magic'"),
        (lambda data: data.update(version=2), "at version"),
        (lambda data: data.pop("groups"), "at groups: Field required"),
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
    with pytest.raises(PlanError, match=r"plan\.json is not") as caught:
        Plan.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([(("model.layers.9.self_attn.q_proj",), 4)], "model.layers.9.self_attn.q_proj, which this model does not"),
        ([(("lm_head",), 4)], "lm_head, which this model does not"),
        ([((Q,), 4), ((Q, K), 4)], f"puts {Q} into 2 groups"),
        ([((Q, Q), 4)], f"puts {Q} into 2 groups"),
        ([((Q, DOWN), 4)], "mixes inputs of [64, 96] features"),
        ([((Q,), 65)], "has rank 65, but its matrices have at most 64"),
        ([((K,), 33)], "has rank 33, but its matrices have at most 32"),
        ([((K, "model.layers.1.self_attn.k_proj"), 65)], "has rank 65, but its matrices have at most 64"),
    ],
)
def test_plans_that_do_not_fit(groups: list[tuple[tuple[str, ...], int]], sentence: str) -> None:
    plan = Plan(
        method="svd", ratio=0.2, groups=tuple(PlanGroup(members=members, rank=rank) for members, rank in groups)
    )
    with pytest.raises(PlanError) as caught:
        plan.check(decoder_of())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_highest_rank_fits() -> None:
    pair = (K, "model.layers.1.self_attn.k_proj")
    groups = (PlanGroup(members=pair, rank=64), PlanGroup(members=(Q,), rank=64))
    Plan(method="svd", ratio=0.2, groups=groups).check(decoder_of())


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
    decoder = describe(model)
    plan = uniform_plan(
        decoder,
        method="svd",
        ratio=Fraction("0.3"),
        group_size=2,
        shared_roles=decoder.family.shared_roles,
        form=form,
    )
    plan = plan.model_copy(update={"groups": plan.groups[:-3]})  # some stay dense
    names = [p.name for p in decoder.projections]
    assert dense_parameters(decoder) == projection_parameters(model, names)
    for outcome in factorize(model, decoder, plan, Weigher(Weighting.NONE)):
        assert outcome.not_pivoted is None
        install_factors(model, outcome.factors)
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


def test_formulas_on_paper() -> None:
    assert stored_parameters(10, 30, 4, "plain") == 160
    assert stored_parameters(10, 30, 4, "pivoted") == 144
    assert multiplications(10, (20, 10), 4, "plain") == 2 * 40 + 120
    assert multiplications(10, (20, 10), 4, "pivoted") == 2 * 24 + 120
    assert Prediction(loss=0.5).nats_per_token == 0.5
    assert Prediction(loss=0.5, scale=0.8).nats_per_token == 0.4
