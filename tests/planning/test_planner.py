"""The planner: targets are met, settings obeyed, predictions those of the factors."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.errors import PlanError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import Lane
from basis_sharing.planning.planner import Planner
from basis_sharing.plans.plan import Plan, dense_parameters, multiplications, stored_parameters
from basis_sharing.recipe.presets import Weighting
from basis_sharing.treatments.factors.candidates import Candidate, Candidates, find_candidates
from basis_sharing.treatments.factors.solve import factorize
from basis_sharing.weightings.weighting import Weigher
from pico import PICO

IDS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))
RATIOS = (0.05, 0.2, 0.35, 0.5, 0.7)


@cache
def prepared(name: str) -> tuple[Any, Decoder, Weigher]:
    model = PICO[name]()
    decoder = describe(model)
    store = MomentStore()
    for block, moments in backward_sweep(model, decoder, IDS, dtype=torch.float32):
        store.put(block, moments)
    return model, decoder, Weigher(Weighting.LOSS, moments=store)


@cache
def planner(name: str, across_roles: bool = True, across_depth: bool = True, **settings: Any) -> Planner:
    model, decoder, weigher = prepared(name)
    found = find_candidates(model, decoder, weigher, across_roles=across_roles, across_depth=across_depth)
    return Planner(decoder, found, method="auto", gradients=True, **{"form": "pivoted", **settings})


def largest_step(plan: Plan, decoder: Decoder, multiple: int = 1) -> int:
    """Return the most parameters that one more rank step of any group could cost."""
    known = {p.name: p for p in decoder.projections}
    return max(multiple * (known[g.members[0]].d_in + sum(known[n].d_out for n in g.members)) for g in plan.groups)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "phi3", "mixtral", "opt"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_is_reached_and_every_projection_used_at_most_once(name: str, ratio: float) -> None:
    chooser = planner(name)
    plan = chooser.at_ratio(ratio)
    plan.check(chooser.decoder)
    uses = Counter(n for group in plan.groups for n in group.members)
    assert set(uses.values()) == {1}
    assert plan.ratio == plan.removed_fraction(chooser.decoder) >= ratio - 1e-12
    dense = dense_parameters(chooser.decoder)
    assert plan.ratio - ratio <= max(1e-3, largest_step(plan, chooser.decoder) / dense)
    assert plan.prediction is not None
    assert plan.prediction.loss == pytest.approx(sum(group.loss or 0 for group in plan.groups))
    assert all(group.form == "pivoted" for group in plan.groups)


def test_what_is_left_dense_is_not_in_the_plan_and_counts_in_full() -> None:
    chooser = planner("llama")
    plan = chooser.at_ratio(0.02)
    left = {p.name for p in chooser.decoder.projections} - {n for group in plan.groups for n in group.members}
    assert left
    known = {p.name: p for p in chooser.decoder.projections}
    assert plan.parameters(chooser.decoder) == sum(known[n].d_in * known[n].d_out for n in left) + sum(
        stored_parameters(known[g.members[0]].d_in, sum(known[n].d_out for n in g.members), g.rank, "pivoted")
        for g in plan.groups
    )


@pytest.mark.parametrize(("across_roles", "across_depth"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_may_not_share_does_not(name: str, across_roles: bool, across_depth: bool) -> None:
    chooser = planner(name, across_roles, across_depth)
    known = {p.name: p for p in chooser.decoder.projections}
    for ratio in RATIOS:
        for group in chooser.at_ratio(ratio).groups:
            assert across_roles or len({known[n].role for n in group.members}) == 1
            assert across_depth or len({known[n].block for n in group.members}) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_loss_rises_with_the_ratio_and_falls_with_more_candidates(name: str) -> None:
    """Up to what the greedy rest of a budget is worth."""
    found = {}
    for roles, depth in ((False, False), (True, False), (False, True), (True, True)):
        plans = [planner(name, roles, depth).at_ratio(ratio) for ratio in RATIOS]
        losses = [plan.prediction.loss for plan in plans if plan.prediction is not None]
        assert all(before < after for before, after in pairwise(losses))
        found[roles, depth] = losses
    for fewer, more in (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 1), (1, 1))):
        for before, after in zip(found[fewer], found[more], strict=True):
            assert after <= before * (1 + 5e-3)


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_ranks_are_multiples_and_budgets_kept(form: str, multiple: int) -> None:
    chooser = planner("llama", form=form, rank_multiple=multiple)
    dense = dense_parameters(chooser.decoder)
    for ratio in (0.1, 0.3, 0.5):
        plan = chooser.at_ratio(ratio)
        assert {group.rank % multiple for group in plan.groups} == {0}
        assert {group.form for group in plan.groups} == {form}
        assert -1e-12 <= plan.ratio - ratio <= largest_step(plan, chooser.decoder, multiple) / dense


def test_the_pivoted_form_predicts_less_loss_in_the_same_size() -> None:
    for ratio in RATIOS[:-1]:
        plain, pivoted = (planner("llama", form=form).at_ratio(ratio).prediction for form in ("plain", "pivoted"))
        assert plain is not None
        assert pivoted is not None
        assert pivoted.loss < 0.9 * plain.loss


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_budgets_of_either_resource_are_kept(name: str, share: float) -> None:
    chooser = planner(name)
    dense = dense_parameters(chooser.decoder)
    small = chooser.within(share * dense, "parameters")
    fast = chooser.within(share * dense, "multiplications")
    for plan in (small, fast):
        plan.check(chooser.decoder)
    assert 0.98 * share * dense < small.parameters(chooser.decoder) <= share * dense
    assert 0.98 * share * dense < fast.multiplications(chooser.decoder) <= share * dense
    assert small.prediction is not None
    assert fast.prediction is not None
    assert small.prediction.loss <= fast.prediction.loss * (1 + 1e-3)  # sharing saves storage first


def test_a_budget_nobody_can_keep_is_refused() -> None:
    chooser = planner("llama")
    for resource in ("parameters", "multiplications"):
        with pytest.raises(PlanError, match="cannot be met"):
            chooser.within(100, resource)
    least = 1 - 1e-9 - chooser.at_ratio(0.95).removed_fraction(chooser.decoder)
    assert least < 0.05


def test_an_ample_budget_leaves_everything_dense() -> None:
    chooser = planner("gpt2")
    plan = chooser.within(dense_parameters(chooser.decoder))
    assert plan.groups == ()
    assert plan.prediction is not None
    assert plan.prediction.loss == 0
    assert plan.ratio == 0


def test_within_a_loss_the_smallest_plan_is_found() -> None:
    chooser = planner("llama")
    sizes = []
    for allowed in (0.05, 0.2, 0.8):
        plan = chooser.within_loss(allowed)
        assert plan.prediction is not None
        assert plan.prediction.loss <= allowed
        smaller = chooser.at_ratio(plan.ratio + 2e-3).prediction
        assert smaller is not None
        assert smaller.loss > allowed
        sizes.append(plan.ratio)
    assert sizes == sorted(sizes)
    with pytest.raises(PlanError, match="cannot be met"):
        chooser.within_loss(1e-15)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("form", ["plain", "pivoted"])
def test_the_predicted_loss_is_that_of_the_factors(name: str, form: str) -> None:
    model, decoder, weigher = prepared(name)
    for ratio in (0.1, 0.4):
        plan = planner(name, form=form).at_ratio(ratio)
        outcomes = list(factorize(model, decoder, plan, weigher))
        for group, outcome in zip(plan.groups, outcomes, strict=True):
            assert outcome.factors.members == group.members
            if outcome.not_pivoted is None:
                assert outcome.factors.rank == group.rank
                assert outcome.loss == pytest.approx(group.loss, rel=1e-4)
        assert sum(outcome.not_pivoted is not None for outcome in outcomes) <= len(outcomes) // 10


def twins() -> Planner:
    """Blocks 2 and 3 have the same weights, inputs and gradients."""
    model = PICO["llama"]()
    model.model.layers[3].load_state_dict(model.model.layers[2].state_dict())
    decoder = describe(model)
    store = MomentStore()
    found = dict(backward_sweep(model, decoder, IDS, dtype=torch.float32))
    for block, moments in found.items():
        same = {name.replace(".2.", ".3."): moment for name, moment in found[2].items()}
        store.put(block, same if block == 3 else moments)
    candidates = find_candidates(model, decoder, Weigher(Weighting.LOSS, moments=store))
    return Planner(decoder, candidates, method="auto", gradients=True, form="pivoted")


def test_blocks_that_are_the_same_share() -> None:
    chooser = twins()
    known = {p.name: p for p in chooser.decoder.projections}
    plan = chooser.at_ratio(0.4)
    blocks = {n: {known[m].block for m in group.members} for group in plan.groups for n in group.members}
    for name, projection in known.items():
        if projection.block in (2, 3):
            assert {2, 3} <= blocks[name], name
    plain = planner("llama").at_ratio(0.4)
    assert plan.prediction is not None
    assert plain.prediction is not None
    assert plan.prediction.loss < 0.9 * plain.prediction.loss


def test_a_shared_group_without_any_loss_still_counts_as_compressed() -> None:
    """Its curve ends with loss 0 at a rank, which is not the same as staying dense."""
    chooser = planner("llama", False, False)
    pair = tuple(p for p in chooser.decoder.projections if p.role == "up" and p.block < 2)
    d_in = pair[0].d_in
    losses = np.append(np.linspace(1, 0, d_in), 0.0)  # nothing is lost at the last rank before full
    private = [Candidate((p,), losses * 100) for p in pair]
    up = frozenset(["up"])
    lanes = [Lane(2, ((up,),), {up: {(0, 1): 0, (1, 2): 1, (0, 2): 2}})]
    alone = Planner(
        replace(chooser.decoder, projections=pair),
        Candidates([*private, Candidate(pair, losses)], lanes),
        method="auto",
        gradients=True,
        form="pivoted",
    )
    dense = dense_parameters(alone.decoder)
    plan = alone.within(dense - 1)
    assert [(group.members, group.rank) for group in plan.groups] == [(tuple(p.name for p in pair), d_in - 1)]
    assert plan.parameters(alone.decoder) < dense
    assert alone.within(dense).parameters(alone.decoder) <= dense


def test_plans_are_data_and_the_same_every_time() -> None:
    chooser = planner("llama")
    plan = chooser.at_ratio(0.3)
    assert plan == chooser.at_ratio(0.3)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert json.loads(plan.model_dump_json())["method"] == "auto"
    order = {p.name: p.block for p in chooser.decoder.projections}
    firsts = [order[group.members[0]] for group in plan.groups]
    assert firsts == sorted(firsts)


def test_multiplications_of_shared_groups_count_the_basis_for_every_member() -> None:
    chooser = twins()
    decoder = chooser.decoder
    known = {p.name: p for p in decoder.projections}
    plan = chooser.at_ratio(0.5)
    left = {p.name for p in decoder.projections} - {n for group in plan.groups for n in group.members}
    expected = sum(known[n].d_in * known[n].d_out for n in left)
    for group in plan.groups:
        outputs = tuple(known[n].d_out for n in group.members)
        expected += multiplications(known[group.members[0]].d_in, outputs, group.rank, group.form)
    assert plan.multiplications(decoder) == expected > plan.parameters(decoder)
