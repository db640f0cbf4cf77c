"""The planner: targets are met, settings obeyed, predictions those of the factors."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from basis_sharing.costs.base import Cost
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.planning.allocation import UnreachableError
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import arranged, search_space
from basis_sharing.plans.plan import Plan, dense_parameters
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.treatments.base import Candidate, Search
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.options import worthwhile
from measured import prepared, repeated
from pico import PICO

RATIOS = (0.05, 0.2, 0.35, 0.5, 0.7)


@cache
def planner(name: str, across_roles: bool = True, across_depth: bool = True, **settings: Any) -> Planner:
    model, decoder, weighting, curves = prepared(name)
    planning = Planning(across_roles=across_roles, across_depth=across_depth, **settings)
    search = Search(model, decoder, weighting, Parameters(), planning, curves)
    return Planner(decoder, search_space(search), method="auto", gradients=True)


def factors_in(plan: Plan) -> list[Factors]:
    factors = [entry for entry in plan.entries if isinstance(entry, Factors)]
    assert len(factors) == len(plan.entries)
    return factors


def cost_of(entry: Entry, cost: Cost, decoder: Decoder) -> int:
    return int(cost.of([decoder.by_name[name] for name in entry.members], entry))


def largest_step(plan: Plan, decoder: Decoder, multiple: int = 1) -> int:
    """Return the most parameters that one more rank step of any group could cost."""
    known = decoder.by_name
    return max(multiple * (known[e.owner].d_in + sum(known[n].d_out for n in e.members)) for e in plan.entries)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "phi3", "mixtral", "opt"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ratio_is_reached_and_every_projection_used_at_most_once(name: str, ratio: float) -> None:
    chooser = planner(name)
    plan = chooser.at_ratio(ratio)
    plan.check(chooser.decoder)
    uses = Counter(n for entry in plan.entries for n in entry.members)
    assert set(uses.values()) == {1}
    assert plan.ratio == plan.removed_fraction(chooser.decoder) >= ratio - 1e-12
    dense = dense_parameters(chooser.decoder)
    assert plan.ratio - ratio <= max(1e-3, largest_step(plan, chooser.decoder) / dense)
    assert plan.prediction is not None
    assert plan.prediction.loss == pytest.approx(sum(entry.loss or 0 for entry in plan.entries))
    assert all(entry.form == "pivoted" for entry in factors_in(plan))


def test_what_is_left_dense_is_not_in_the_plan_and_counts_in_full() -> None:
    chooser = planner("llama")
    plan = chooser.at_ratio(0.02)
    known = chooser.decoder.by_name
    left = set(known) - {n for entry in plan.entries for n in entry.members}
    assert left
    assert plan.parameters(chooser.decoder) == sum(known[n].d_in * known[n].d_out for n in left) + sum(
        e.rank * (known[e.owner].d_in + sum(known[n].d_out for n in e.members)) - e.rank**2 for e in factors_in(plan)
    )


@pytest.mark.parametrize(("across_roles", "across_depth"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_may_not_share_does_not(name: str, across_roles: bool, across_depth: bool) -> None:
    chooser = planner(name, across_roles, across_depth)
    known = chooser.decoder.by_name
    for ratio in RATIOS:
        for entry in chooser.at_ratio(ratio).entries:
            assert across_roles or len({known[n].role for n in entry.members}) == 1
            assert across_depth or len({known[n].block for n in entry.members}) == 1


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
        assert {entry.rank % multiple for entry in factors_in(plan)} == {0}
        assert {entry.form for entry in factors_in(plan)} == {form}
        assert -1e-12 <= plan.ratio - ratio <= largest_step(plan, chooser.decoder, multiple) / dense


def test_the_pivoted_form_predicts_less_loss_in_the_same_size() -> None:
    for ratio in RATIOS[:-1]:
        plain, pivoted = (planner("llama", form=form).at_ratio(ratio).prediction for form in ("plain", "pivoted"))
        assert plain is not None
        assert pivoted is not None
        assert pivoted.loss < 0.9 * plain.loss


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_budgets_of_every_cost_are_kept(name: str, share: float) -> None:
    chooser = planner(name)
    dense = dense_parameters(chooser.decoder)
    small = chooser.within([(Parameters(), share * dense)])
    fast = chooser.within([(Multiplications(), share * dense)])
    light = chooser.within([(Bytes(2), share * 2 * dense)])
    for plan in (small, fast, light):
        plan.check(chooser.decoder)
    assert 0.96 * share * dense < light.cost(chooser.decoder, Bytes(2)) / 2 <= share * dense
    assert 0.98 * share * dense < small.parameters(chooser.decoder) <= share * dense
    assert 0.98 * share * dense < fast.multiplications(chooser.decoder) <= share * dense
    assert small.prediction is not None
    assert fast.prediction is not None
    assert small.prediction.loss <= fast.prediction.loss * (1 + 1e-3)  # sharing saves storage first


def test_a_budget_nobody_can_keep_is_refused() -> None:
    chooser = planner("llama")
    for cost in (Parameters(), Multiplications(), Bytes()):
        with pytest.raises(UnreachableError, match="cannot be met") as caught:
            chooser.within([(cost, 100)])
        assert chooser.within([(cost, caught.value.least)]).cost(chooser.decoder, cost) <= caught.value.least
    least = 1 - 1e-9 - chooser.at_ratio(0.95).removed_fraction(chooser.decoder)
    assert least < 0.05


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_budgets_at_once_are_both_kept(name: str) -> None:
    """Each alone breaks the other, and together they cost more than either alone."""
    chooser = twins() if name == "llama" else planner(name)
    decoder = chooser.decoder
    dense = dense_parameters(decoder)
    small, fast = (chooser.within([(cost, 0.6 * dense)]) for cost in (Parameters(), Multiplications()))
    few, quick = small.parameters(decoder), fast.multiplications(decoder)
    budgets = [(Parameters(), 0.98 * few), (Multiplications(), quick)]
    both = chooser.within(budgets)
    both.check(decoder)
    assert both.parameters(decoder) <= 0.98 * few
    assert both.multiplications(decoder) <= quick
    assert both.prediction is not None
    for alone in (chooser.within([budget]) for budget in budgets):
        assert alone.prediction is not None
        assert both.prediction.loss >= alone.prediction.loss * (1 - 5e-3)


def test_without_sharing_across_depth_nothing_is_measured_again() -> None:
    chooser, alone = planner("llama"), planner("llama", across_depth=False)
    for ratio in RATIOS:
        assert chooser.without_sharing_across_depth().at_ratio(ratio) == alone.at_ratio(ratio)


def test_an_ample_budget_leaves_everything_dense() -> None:
    chooser = planner("gpt2")
    plan = chooser.of_size(dense_parameters(chooser.decoder))
    assert plan.entries == ()
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
    model, decoder, weighting, _ = prepared(name)
    for ratio in (0.1, 0.4):
        plan = planner(name, form=form).at_ratio(ratio)
        outcomes = list(execute(model, decoder, plan, weighting))
        for entry, outcome in zip(factors_in(plan), outcomes, strict=True):
            assert outcome.entry.members == entry.members
            assert isinstance(outcome.entry, Factors)
            if outcome.entry.form == entry.form:
                assert outcome.entry.rank == entry.rank
                assert outcome.loss == pytest.approx(entry.loss, rel=1e-3)
        differs = [outcome for outcome in outcomes if outcome.notes]
        assert all("is stored plainly" in note for outcome in differs for note in outcome.notes)
        assert len(differs) <= len(outcomes) // 10


def twins() -> Planner:
    """Blocks 2 and 3 have the same weights, inputs and gradients."""
    model = PICO["llama"]()
    decoder = describe(model)
    weighting = repeated(model, decoder, (2, 3))
    space = search_space(Search(model, decoder, weighting, Parameters()))
    return Planner(decoder, space, method="auto", gradients=True)


def test_blocks_that_are_the_same_share() -> None:
    chooser = twins()
    known = chooser.decoder.by_name
    plan = chooser.at_ratio(0.4)
    blocks = {n: {known[m].block for m in entry.members} for entry in plan.entries for n in entry.members}
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

    def candidate(scope: tuple[Projection, ...], losses: NDArray[np.float64]) -> Candidate:
        options = worthwhile(scope, "pivoted")
        return Candidate(scope, options, losses[options.ranks])

    decoder = replace(chooser.decoder, projections=pair)
    candidates = [*(candidate((p,), losses * 100) for p in pair), candidate(pair, losses)]
    alone = Planner(decoder, arranged(decoder, candidates), method="auto", gradients=True)
    dense = dense_parameters(decoder)
    plan = alone.of_size(dense - 1)
    assert [(entry.members, entry.rank) for entry in factors_in(plan)] == [(tuple(p.name for p in pair), d_in - 1)]
    assert plan.parameters(decoder) < dense
    assert alone.of_size(dense).parameters(decoder) <= dense


def test_plans_are_data_and_the_same_every_time() -> None:
    chooser = planner("llama")
    plan = chooser.at_ratio(0.3)
    assert plan == chooser.at_ratio(0.3)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert json.loads(plan.model_dump_json())["method"] == "auto"
    firsts = [chooser.decoder.by_name[entry.owner].block for entry in plan.entries]
    assert firsts == sorted(firsts)


def test_multiplications_of_shared_groups_count_the_basis_for_every_input() -> None:
    chooser = twins()
    decoder = chooser.decoder
    known = decoder.by_name
    plan = chooser.at_ratio(0.5)
    left = set(known) - {n for entry in plan.entries for n in entry.members}
    expected = sum(known[n].d_in * known[n].d_out for n in left)
    for entry in factors_in(plan):
        read = known[entry.owner].d_in - entry.rank
        inputs = len({(known[n].block, known[n].input) for n in entry.members})
        found = (inputs * read + sum(known[n].d_out for n in entry.members)) * entry.rank
        expected += found
        assert cost_of(entry, Multiplications(), decoder) == found
    assert plan.multiplications(decoder) == expected > plan.parameters(decoder)
