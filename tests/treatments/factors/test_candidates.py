"""Candidates: what may share, and what each possible group is measured to lose."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.truncation import truncate
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import most_rank, stored_parameters
from basis_sharing.recipe.presets import Weighting
from basis_sharing.run.progress import Progress
from basis_sharing.treatments.factors import candidates
from basis_sharing.treatments.factors.candidates import (
    Candidate,
    Candidates,
    find_candidates,
    pays,
    separate_losses,
    stored_and_lost,
)
from basis_sharing.weightings.weighting import Weigher
from pico import PICO

IDS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))


def weigher_of(model: Any, decoder: Decoder) -> Weigher:
    store = MomentStore()
    for block, moments in backward_sweep(model, decoder, IDS, dtype=torch.float32):
        store.put(block, moments)
    return Weigher(Weighting.LOSS, moments=store)


@cache
def measured(name: str, across_roles: bool = True, across_depth: bool = True) -> tuple[Any, Decoder, Weigher, Any]:
    model = PICO[name]()
    decoder = describe(model)
    weigher = weigher_of(model, decoder)
    found = find_candidates(model, decoder, weigher, across_roles=across_roles, across_depth=across_depth)
    return model, decoder, weigher, found


def repeated(blocks: Sequence[int]) -> tuple[Any, Decoder, Weigher]:
    """A model in which some blocks have the same weights, inputs and gradients."""
    model = PICO["llama"]()
    first, *others = blocks
    for block in others:
        model.model.layers[block].load_state_dict(model.model.layers[first].state_dict())
    decoder = describe(model)
    store = MomentStore()
    found = dict(backward_sweep(model, decoder, IDS, dtype=torch.float32))
    for block, moments in found.items():
        if block in others:
            moments = {n.replace(f".{first}.", f".{block}."): moment for n, moment in found[first].items()}
        store.put(block, moments)
    return model, decoder, Weigher(Weighting.LOSS, moments=store)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gemma3", "mixtral", "opt"])
def test_every_lane_can_be_covered_in_every_partition(name: str) -> None:
    _, decoder, _, found = measured(name)
    covered = []
    for lane in found.lanes:
        for partition in lane.partitions:
            mine = []
            for part in partition:
                for start in range(lane.length):
                    mine += [p.name for p in found.groups[lane.segments[part][start, start + 1]].members]
            assert len(set(mine)) == len(mine)
            assert set(mine) == {p.name for p in projections_of(lane, found)}
        covered += mine
    assert sorted(covered) == sorted(p.name for p in decoder.projections)


def projections_of(lane: Any, found: Candidates) -> set[Any]:
    return {
        p
        for part in lane.partitions[0]
        for block in range(lane.length)
        for p in found.groups[lane.segments[part][block, block + 1]].members
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_losses_are_those_of_the_factors(name: str) -> None:
    model, _, weigher, found = measured(name)
    for candidate in found.groups:
        expected = truncate(weigher.problem(model, candidate.members)).losses.numpy()
        assert len(candidate.losses) == most_rank(list(candidate.members)) + 1 == len(expected)
        assert np.allclose(candidate.losses, expected, rtol=1e-5, atol=1e-9 * expected[0])
        assert candidate.losses[-1] == 0
        assert (np.diff(candidate.losses) <= 1e-12 * expected[0]).all()


def test_partitions_of_three_roles_and_of_two() -> None:
    _, _, _, found = measured("llama")
    sizes = {lane.partitions[0]: len(lane.partitions) for lane in found.lanes}
    assert sorted(sizes.values()) == [1, 1, 2, 5]
    joint = {tuple(p.role for p in c.members) for c in found.groups if len({p.block for p in c.members}) == 1}
    assert {("q", "k", "v"), ("q", "k"), ("q", "v"), ("k", "v"), ("gate", "up")} < joint
    assert all(len({p.input for p in c.members}) == 1 for c in found.groups)


def test_members_are_in_depth_order() -> None:
    model, decoder, weigher = repeated((2, 3))
    found = find_candidates(model, decoder, weigher)
    order = {p: i for i, p in enumerate(decoder.projections)}
    for candidate in found.groups:
        positions = [order[p] for p in candidate.members]
        assert positions == sorted(positions)
    assert any(len({p.block for p in c.members}) == 2 and len({p.role for p in c.members}) > 1 for c in found.groups)


@pytest.mark.parametrize(("across_roles", "across_depth"), [(False, True), (True, False), (False, False)])
def test_what_may_not_share_does_not(across_roles: bool, across_depth: bool) -> None:
    for name in ("llama", "gpt2"):
        _, decoder, _, found = measured(name, across_roles, across_depth)
        for candidate in found.groups:
            assert across_roles or len({p.role for p in candidate.members}) == 1
            assert across_depth or len({p.block for p in candidate.members}) == 1
        if not across_roles and not across_depth:
            assert len(found.groups) == len(decoder.projections)


@pytest.mark.parametrize(("across_roles", "across_depth"), [(True, False), (False, True), (False, False)])
def test_restricted_candidates_are_those_measured_without(across_roles: bool, across_depth: bool) -> None:
    *_, everything = measured("llama")
    *_, fewer = measured("llama", across_roles, across_depth)
    found = everything.restricted(across_roles=across_roles, across_depth=across_depth)
    for ours, theirs in zip(found.lanes, fewer.lanes, strict=True):
        assert set(ours.partitions) == set(theirs.partitions)
        for part, segments in theirs.segments.items():
            assert ours.segments[part].keys() == segments.keys()
            for place, index in segments.items():
                mine, other = found.groups[ours.segments[part][place]], fewer.groups[index]
                assert mine.members == other.members
                np.testing.assert_allclose(mine.losses, other.losses, rtol=1e-9, atol=1e-15)


def test_blocks_with_the_same_weights_get_a_segment_of_half_the_size() -> None:
    model, decoder, weigher = repeated((2, 3))
    found = find_candidates(model, decoder, weigher, across_roles=False)
    private = {c.members[0]: c for c in found.groups if len(c.members) == 1}
    shared = [c for c in found.groups if tuple(p.block for p in c.members) == (2, 3)]
    assert {c.members[0].role for c in shared} == {"q", "k", "v", "o", "gate", "up", "down"}
    for candidate in shared:
        alone = private[candidate.members[0]].losses
        assert np.allclose(candidate.losses[: len(alone)], 2 * alone, rtol=1e-5, atol=1e-7 * alone[0])


def test_segments_grow_over_many_equal_blocks() -> None:
    """To 2, 3 and 4 of 5 blocks: longer runs double in length, or are made of two."""
    model, decoder, weigher = repeated(range(5))
    found = find_candidates(model, decoder, weigher, across_roles=False)
    for lane in found.lanes:
        for segments in lane.segments.values():
            expected = {(start, stop) for stop in range(1, 6) for start in range(stop)} - {(0, 5)}
            assert set(segments) == expected
            for (start, stop), index in segments.items():
                assert tuple(p.block for p in found.groups[index].members) == tuple(range(start, stop))


@pytest.mark.parametrize("blocks", range(1, 100))
def test_segments_of_every_length_can_grow_from_their_halves(blocks: int) -> None:
    lengths = candidates._lengths(blocks)
    assert lengths == sorted(set(lengths))
    assert all(2 <= length <= blocks for length in lengths)
    assert all({(length + 1) // 2, length // 2} <= {1, *lengths} for length in lengths)
    assert blocks == 1 or max(lengths) > blocks / 1.51


def test_lanes_end_where_shapes_change() -> None:
    model = PICO["llama"]()
    up = model.model.layers[2].mlp
    for name in ("gate_proj", "up_proj"):
        old = getattr(up, name)
        new = torch.nn.Linear(64, 48, bias=False)
        new.weight.data.copy_(old.weight.data[:48])
        setattr(up, name, new)
    up.down_proj = torch.nn.Linear(48, 64, bias=False)
    decoder = describe(model)
    found = find_candidates(model, decoder, weigher_of(model, decoder))
    assert sorted(lane.length for lane in found.lanes) == [1, 1, 2, 2, 2, 2, 5, 5]
    assert all(len({p.d_in for p in c.members}) == 1 for c in found.groups)


def test_events_count_up_to_their_total() -> None:
    model, decoder, weigher, _ = measured("llama")
    for across_depth, expected in (
        (True, ["measuring candidates", "measuring shared candidates"]),
        (False, ["measuring candidates"]),
    ):
        events: list[Progress] = []
        find_candidates(model, decoder, weigher, across_depth=across_depth, progress=events.append)
        assert list(dict.fromkeys(event.stage for event in events)) == expected
        for stage in expected:
            mine = [event for event in events if event.stage == stage]
            assert [event.done for event in mine] == list(range(1, len(mine) + 1))
            assert {event.total for event in mine} == {len(mine)}


def test_a_group_with_everything_in_common_pays_and_one_with_nothing_does_not() -> None:
    _, _, _, found = measured("llama")
    private = {c.members[0].name: c for c in found.groups if len(c.members) == 1}
    a, b = (private[f"model.layers.{i}.mlp.down_proj"] for i in (0, 1))
    members = (*a.members, *b.members)
    prices = candidates._prices(found)
    energies = np.concatenate([-np.diff(a.losses), -np.diff(b.losses)])
    nothing = np.append(np.sort(energies).cumsum()[::-1], 0.0)[: most_rank(list(members)) + 1]
    assert pays(Candidate(members, a.losses + b.losses), [a, b], prices)
    assert not pays(Candidate(members, nothing), [a, b], prices)


def test_prices_span_the_targets_people_ask_for() -> None:
    _, decoder, _, found = measured("llama")
    private = [stored_and_lost(c) for c in found.groups if len(c.members) == 1]
    dense = sum(p.d_in * p.d_out for p in decoder.projections)
    prices = candidates._prices(found)
    assert (np.diff(prices) > 0).all()
    kept = [sum(x[(y + price * x).argmin()] for x, y in private) / dense for price in prices]
    assert kept[0] > 0.85
    assert kept[-1] < 0.3
    assert all(after <= before for before, after in pairwise(kept))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stored_parameters_are_those_of_the_pivoted_form(name: str) -> None:
    _, _, _, found = measured(name)
    for candidate in found.groups:
        costs, lost = stored_and_lost(candidate)
        d_in, outputs = candidate.members[0].d_in, sum(p.d_out for p in candidate.members)
        ranks = range(1, len(candidate.losses))
        assert costs.tolist() == [stored_parameters(d_in, outputs, rank, "pivoted") for rank in ranks]
        assert lost.tolist() == candidate.losses[1:].tolist()


def test_separate_losses_are_those_of_the_best_split_of_a_cost() -> None:
    """Never above any split into ranks, and exact at the ends."""
    _, _, _, found = measured("llama")
    private = {c.members[0].name: c for c in found.groups if len(c.members) == 1}
    pieces = [private[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1)]
    (x, y), (u, w) = (stored_and_lost(piece) for piece in pieces)
    costs, lost = np.array([(x[i] + u[j], y[i] + w[j]) for i in range(len(x)) for j in range(len(u))]).T
    assert (separate_losses(pieces, costs) <= lost + 1e-12).all()
    least = x[0] + u[0]
    assert separate_losses(pieces, np.array([least]))[0] == pytest.approx(y[0] + w[0])
    assert separate_losses(pieces, np.array([least - 1.0]))[0] == np.inf
    assert separate_losses(pieces, np.array([1e9]))[0] == pytest.approx(0, abs=1e-12)
