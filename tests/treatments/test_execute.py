"""Carrying out a plan: what is remembered, kept and divided, the outcomes are the same."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from basis_sharing.linalg.truncation import Truncation, truncate
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress
from basis_sharing.treatments import execute as executing
from basis_sharing.treatments.base import Outcome
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors import treatment
from basis_sharing.treatments.factors.treatment import FactorsTreatment
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.second_moment import SecondMoment
from measured import input_moments
from pico import PICO

T = TypeVar("T")


@pytest.fixture(scope="module")
def prepared() -> tuple[Any, Decoder, SecondMoment]:
    model = PICO["llama"]()
    decoder = describe(model)
    return model, decoder, SecondMoment(moments=input_moments(model, decoder))


def plan_at(ratio: str, decoder: Decoder) -> Plan:
    roles = decoder.family.shared_roles
    return uniform_plan(
        decoder, method="svd-llm", ratio=Fraction(ratio), group_size=2, shared_roles=roles, form="pivoted"
    )


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that were decomposed."""
    found: list[int] = []

    def counted(problem: Sequence[Any]) -> Truncation:
        found.append(len(problem))
        return truncate(problem)

    monkeypatch.setattr(treatment, "truncate", counted)
    return found


def assert_same(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.entry, a.loss, a.relative_loss, a.ridge, a.notes) == (
            b.entry,
            b.loss,
            b.relative_loss,
            b.ridge,
            b.notes,
        )
        assert a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


def test_plans_of_several_ratios_share_their_decompositions(
    prepared: tuple[Any, Decoder, SecondMoment], decomposed: list[int]
) -> None:
    model, decoder, weighting = prepared
    treatments = {"factors": FactorsTreatment(remembered={})}
    plans = [plan_at(ratio, decoder) for ratio in ("0.2", "0.4")]
    remembering = [list(execute(model, decoder, plan, weighting, treatments=treatments)) for plan in plans]
    assert len(decomposed) == len(plans[0].entries) == len(plans[1].entries)
    decomposed.clear()
    for plan, found in zip(plans, remembering, strict=True):
        assert_same(found, list(execute(model, decoder, plan, weighting)))
    assert len(decomposed) == 2 * len(plans[0].entries), "nothing is remembered unless it is asked for"


def test_what_is_in_the_folder_is_not_solved_again(
    prepared: tuple[Any, Decoder, SecondMoment], decomposed: list[int], tmp_path: Path
) -> None:
    model, decoder, weighting = prepared
    plan = plan_at("0.3", decoder)
    outcomes = execute(model, decoder, plan, weighting, folder=tmp_path)
    first = [next(outcomes) for _ in range(5)]
    outcomes.close()
    assert len(decomposed) == 5
    events: list[Progress] = []
    again = list(execute(model, decoder, plan, weighting, folder=tmp_path, progress=events.append))
    assert len(decomposed) == len(plan.entries)
    assert_same(again[:5], first)
    assert [(event.done, event.total) for event in events] == [
        (done, len(plan.entries)) for done in range(6, len(plan.entries) + 1)
    ]
    decomposed.clear()
    assert_same(list(execute(None, decoder, plan, SecondMoment(), folder=tmp_path)), again)
    assert decomposed == []


class Divided(Processes):
    """One process of several that are asked one after the other, and give what they gave before."""

    given: dict[int, Any]

    def given_by(self, index: int, value: T | None) -> T:
        """Return what an earlier process gave."""
        if value is not None:
            self.given[self.place] = value
        found: T = self.given[self.place]
        object.__setattr__(self, "place", self.place + 1)
        return found

    place: int


def test_every_process_solves_its_share_and_yields_all(prepared: tuple[Any, Decoder, SecondMoment]) -> None:
    model, decoder, weighting = prepared
    plan = plan_at("0.3", decoder)
    whole = list(execute(model, decoder, plan, weighting))
    scopes = [[decoder.by_name[name] for name in entry.members] for entry in plan.entries]
    owners = executing._owners(scopes, 3)
    assert set(owners) == {0, 1, 2}
    given = {position: whole[position] for position in range(len(whole))}
    for index in range(3):
        process = Divided(index, 3)
        object.__setattr__(process, "given", dict(given))
        object.__setattr__(process, "place", 0)
        events: list[Progress] = []
        found = list(execute(model, decoder, plan, weighting, processes=process, progress=events.append))
        assert_same(found, whole)
        assert len(events) == owners.count(index)


def test_work_is_divided_evenly(prepared: tuple[Any, Decoder, SecondMoment]) -> None:
    _, decoder, _ = prepared
    scopes = [[p] for p in decoder.projections]
    owners = executing._owners(scopes, 4)
    loads = [0] * 4
    for (p,), owner in zip(scopes, owners, strict=True):
        loads[owner] += p.d_in**2 * (p.d_in + p.d_out)
    assert max(loads) < 1.2 * min(loads)
