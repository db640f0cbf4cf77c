"""Candidates: what may share, and what each possible group is measured to lose."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from basis_sharing.costs.base import shapes_of
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.linalg.truncation import truncate
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import arranged
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.entries_basis_sharing import most_rank
from basis_sharing.treatments.base import Search
from basis_sharing.treatments.factors import candidates
from basis_sharing.treatments.factors.candidates import Group, factor_candidates, find_groups, group_of, pays
from basis_sharing.treatments.factors.options import all_ranks
from basis_sharing.weightings.loss import Loss
from measured import loss_weighting, repeated
from pico import PICO, build


@cache
def prepared(name: str) -> tuple[Any, Decoder, Loss]:
    model = PICO[name]()
    decoder = describe(model)
    return model, decoder, loss_weighting(model, decoder)


def search(name: str, **planning: Any) -> Search:
    return Search(*prepared(name), Parameters(), Planning(**planning))


@cache
def measured(name: str, across_roles: bool = True, across_depth: bool = True) -> list[Group]:
    return find_groups(search(name, across_roles=across_roles, across_depth=across_depth))


def with_equal_blocks(*blocks: int, across_roles: bool = True) -> tuple[Decoder, list[Group]]:
    """Return the groups of a model in which some blocks have the same weights, inputs and gradients."""
    model = PICO["llama"]()
    decoder = describe(model)
    weighting = repeated(model, decoder, blocks)
    return decoder, find_groups(
        Search(model, decoder, weighting, Parameters(), Planning(across_roles=across_roles)),
    )


def private(groups: list[Group]) -> dict[str, Group]:
    return {group.scope[0].name: group for group in groups if len(group.scope) == 1}


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_losses_are_those_of_the_factors(name: str) -> None:
    model, _, weighting = prepared(name)
    for group in measured(name):
        expected = truncate(weighting.problem(model, group.scope)).losses.numpy()
        assert len(group.losses) == most_rank(shapes_of(group.scope)) + 1 == len(expected)
        assert np.allclose(group.losses, expected, rtol=1e-4, atol=1e-6 * expected[0])
        assert group.losses[-1] == 0
        assert (np.diff(group.losses) <= 1e-12 * expected[0]).all()


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_candidates_are_the_groups_with_the_ranks_to_choose_from(form: str, multiple: int) -> None:
    asked = search("llama", form=form, rank_multiple=multiple)
    groups = {group.scope: group for group in find_groups(asked)}
    found = factor_candidates(asked)
    assert {candidate.scope for candidate in found} == set(groups)
    for candidate in found:
        ranks = [option.rank for option in candidate.options]  # type: ignore[attr-defined]
        assert len(ranks) == len(candidate.losses)
        assert all(rank % multiple == 0 for rank in ranks)
        assert {option.form for option in candidate.options} <= {form}  # type: ignore[attr-defined]
        assert {option.members for option in candidate.options} <= {tuple(p.name for p in candidate.scope)}
        assert candidate.losses.tolist() == groups[candidate.scope].losses[ranks].tolist()


def test_all_ways_to_divide_three_roles_and_two() -> None:
    groups = measured("llama")
    joint = {tuple(p.role for p in g.scope) for g in groups if len({p.block for p in g.scope}) == 1}
    assert {("q", "k", "v"), ("q", "k"), ("q", "v"), ("k", "v"), ("gate", "up")} < joint
    assert all(len({p.input for p in group.scope}) == 1 for group in groups)


def test_members_are_in_depth_order() -> None:
    decoder, groups = with_equal_blocks(2, 3)
    order = {p: i for i, p in enumerate(decoder.projections)}
    for group in groups:
        positions = [order[p] for p in group.scope]
        assert positions == sorted(positions)
    assert any(len({p.block for p in g.scope}) == 2 and len({p.role for p in g.scope}) > 1 for g in groups)


@pytest.mark.parametrize(("across_roles", "across_depth"), [(False, True), (True, False), (False, False)])
def test_what_may_not_share_does_not(across_roles: bool, across_depth: bool) -> None:
    for name in ("llama", "gpt2"):
        groups = measured(name, across_roles, across_depth)
        for group in groups:
            assert across_roles or len({p.role for p in group.scope}) == 1
            assert across_depth or len({p.block for p in group.scope}) == 1
        if not across_roles and not across_depth:
            assert len(groups) == len(prepared(name)[1].projections)


def test_blocks_with_the_same_weights_get_a_segment_of_half_the_size() -> None:
    _, groups = with_equal_blocks(2, 3, across_roles=False)
    alone = private(groups)
    shared = [group for group in groups if tuple(p.block for p in group.scope) == (2, 3)]
    assert {group.scope[0].role for group in shared} == {"q", "k", "v", "o", "gate", "up", "down"}
    for group in shared:
        losses = alone[group.scope[0].name].losses
        assert np.allclose(group.losses[: len(losses)], 2 * losses, rtol=1e-5, atol=1e-7 * losses[0])


def test_segments_grow_over_many_equal_blocks() -> None:
    """To 2, 3 and 4 of 5 blocks: longer runs double in length, or are made of two."""
    _, groups = with_equal_blocks(*range(5), across_roles=False)
    runs: dict[str, list[tuple[int, ...]]] = {}
    for group in groups:
        runs.setdefault(group.scope[0].role, []).append(tuple(p.block for p in group.scope))
    expected = {tuple(range(start, stop)) for stop in range(1, 6) for start in range(stop)} - {tuple(range(5))}
    assert set(runs) == {"q", "k", "v", "o", "gate", "up", "down"}
    for found in runs.values():
        assert set(found) == expected
        assert len(found) == len(expected)


@pytest.mark.parametrize("blocks", range(1, 100))
def test_segments_of_every_length_can_grow_from_their_halves(blocks: int) -> None:
    lengths = candidates._lengths(blocks)
    assert lengths == sorted(set(lengths))
    assert all(2 <= length <= blocks for length in lengths)
    assert all({(length + 1) // 2, length // 2} <= {1, *lengths} for length in lengths)
    assert blocks == 1 or max(lengths) > blocks / 1.51


def test_nothing_is_shared_where_shapes_change() -> None:
    model = PICO["llama"]()
    mlp = model.model.layers[2].mlp
    for name in ("gate_proj", "up_proj"):
        old = getattr(mlp, name)
        new = torch.nn.Linear(64, 48, bias=False)
        new.weight.data.copy_(old.weight.data[:48])
        setattr(mlp, name, new)
    mlp.down_proj = torch.nn.Linear(48, 64, bias=False)
    decoder = describe(model)
    groups = find_groups(Search(model, decoder, loss_weighting(model, decoder), Parameters()))
    assert all(len({p.d_in for p in group.scope}) == 1 for group in groups)
    for group in groups:
        if group.scope[0].role in ("gate", "up", "down"):
            blocks = {p.block for p in group.scope}
            assert 2 not in blocks or blocks == {2}


def test_events_count_up_to_their_total() -> None:
    model, decoder, weighting = prepared("llama")
    for across_depth, expected in (
        (True, ["measuring candidates", "measuring shared candidates"]),
        (False, ["measuring candidates"]),
    ):
        events: list[Progress] = []
        planning = Planning(across_depth=across_depth)
        find_groups(Search(model, decoder, weighting, Parameters(), planning, progress=events.append))
        assert list(dict.fromkeys(event.stage for event in events)) == expected
        for stage in expected:
            mine = [event for event in events if event.stage == stage]
            assert [event.done for event in mine] == list(range(1, len(mine) + 1))
            assert {event.total for event in mine} == {len(mine)}


def test_what_is_known_is_not_measured_again() -> None:
    model, decoder, weighting = prepared("gpt2")
    curves: dict[tuple[str, ...], Any] = {}
    first = find_groups(Search(model, decoder, weighting, Parameters(), curves=curves))
    assert all(key[0] == "factors" for key in curves)
    assert {("factors", *(p.name for p in group.scope)) for group in first} <= set(curves)
    events: list[Progress] = []
    again = find_groups(Search(None, decoder, Loss(), Parameters(), curves=curves, progress=events.append))
    assert events == []
    assert [group.scope for group in again] == [group.scope for group in first]
    assert all((a.losses == b.losses).all() for a, b in zip(again, first, strict=True))


def test_a_group_with_everything_in_common_pays_and_one_with_nothing_does_not() -> None:
    alone = private(measured("llama"))
    a, b = (alone[f"model.layers.{i}.mlp.down_proj"] for i in (0, 1))
    scope = (*a.scope, *b.scope)
    options = all_ranks(scope, "pivoted")
    prices = candidates.prices_of(measured("llama"))
    energies = np.concatenate([-np.diff(a.losses), -np.diff(b.losses)])
    nothing = np.append(np.sort(energies).cumsum()[::-1], 0.0)[: most_rank(shapes_of(scope)) + 1]
    everything = np.append(a.losses + b.losses, np.zeros(len(nothing) - len(a.losses)))
    assert pays(group_of(scope, everything, Parameters(), options), [a, b], prices)
    assert not pays(group_of(scope, nothing, Parameters(), options), [a, b], prices)


def deep(blocks: int = 16) -> tuple[Any, Decoder, Loss]:
    """Return a model with many blocks: neighbours have similar k and v, and different inputs matter for the rest."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = build("llama", **sizes, num_hidden_layers=blocks, vocab_size=260)
    for index, block in enumerate(model.model.layers):
        for linear in (block.self_attn.q_proj, block.self_attn.o_proj, *block.mlp.children()):
            if isinstance(linear, torch.nn.Linear):
                width = linear.in_features
                Q, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(index)))
                linear.weight.data @= 2 * Q * torch.logspace(0, -2, width) @ Q.T
    for before, after in pairwise(model.model.layers):
        for name in ("k_proj", "v_proj"):
            old, new = before.self_attn.get_submodule(name).weight, after.self_attn.get_submodule(name).weight
            new.data.mul_(0.4).add_(old.data, alpha=0.9)
    decoder = describe(model)
    return model, decoder, loss_weighting(model, decoder)


def test_the_plan_is_that_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role is given up only where sharing it changes the expected loss of no plan by more than a thousandth."""
    model, decoder, weighting = deep()
    every: dict[tuple[str, ...], Any] = {}
    screened: dict[tuple[str, ...], Any] = {}
    spaces = []
    for curves in (screened, every):
        with monkeypatch.context() as patch:
            if curves is every:
                patch.setattr(candidates, "_PROBES", 100)
            asked = Search(model, decoder, weighting, Parameters(), curves=curves)
            spaces.append(arranged(decoder, factor_candidates(asked)))
    gates = [[key for key in curves if len(key) == 3 and key[2].endswith("gate_proj")] for curves in (screened, every)]
    assert len(gates[0]) < len(gates[1]) == len(decoder.blocks) - 1
    assert screened.keys() < every.keys()
    for ratio in (0.1, 0.2, 0.3, 0.5, 0.7):
        quick, best = (Planner(decoder, space, "auto", True).at_ratio(ratio).prediction for space in spaces)
        assert quick is not None
        assert best is not None
        assert quick.loss <= 1.001 * best.loss


def test_prices_span_the_targets_people_ask_for() -> None:
    groups = measured("llama")
    alone = list(private(groups).values())
    dense = sum(group.dense for group in alone)
    prices = candidates.prices_of(groups)
    assert (np.diff(prices) > 0).all()
    kept = [sum(g.costs[(g.losses[1:] + price * g.costs).argmin()] for g in alone) / dense for price in prices]
    assert kept[0] > 0.85
    assert kept[-1] < 0.3
    assert all(after <= before for before, after in pairwise(kept))


@pytest.mark.parametrize("cost", [Parameters(), Bytes(), Multiplications()])
def test_groups_are_priced_in_the_currency_of_the_target(cost: Any) -> None:
    model, decoder, weighting = prepared("llama")
    for group in find_groups(Search(model, decoder, weighting, cost, Planning(across_depth=False))):
        assert len(group.costs) == len(group.options) == len(group.losses) - 1
        assert group.dense == cost.dense(group.scope)
        for rank in {1, 2, len(group.costs) // 2, len(group.costs)} - {0}:
            option = group.options[rank - 1]
            assert option.rank == rank
            assert group.costs[rank - 1] == cost.of(group.scope, option)
