"""Candidates: what may share, and what each possible group is measured to lose."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.truncation import truncate
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plan import most_rank
from basis_sharing.planning.candidates import (
    Candidate,
    Candidates,
    find_candidates,
    pays,
    separate_losses,
    stored_and_lost,
)
from basis_sharing.presets import Weighting
from basis_sharing.progress import Progress
from basis_sharing.weighting import Weigher
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


def twins() -> Any:
    """A model in which blocks 2 and 3 have the same weights, and nothing else in common with the others."""
    model = PICO["llama"]()
    model.model.layers[3].load_state_dict(model.model.layers[2].state_dict())
    return model


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
    model = twins()
    decoder = describe(model)
    found = find_candidates(model, decoder, weigher_of(model, decoder))
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


def test_blocks_with_the_same_weights_get_a_segment_and_random_ones_none() -> None:
    model = twins()
    decoder = describe(model)
    found = find_candidates(model, decoder, weigher_of(model, decoder), across_roles=False)
    shared = {c.members for c in found.groups if len(c.members) > 1}
    assert {tuple(p.block for p in members) for members in shared} == {(2, 3)}
    assert len(shared) == 7
    _, _, _, random = measured("llama")
    assert not any(len({p.block for p in c.members}) > 1 for c in random.groups)


def test_segments_grow_over_many_equal_blocks() -> None:
    model = PICO["llama"]()
    for layer in model.model.layers[1:]:
        layer.load_state_dict(model.model.layers[0].state_dict())
    decoder = describe(model)
    found = find_candidates(model, decoder, weigher_of(model, decoder), across_roles=False)
    lengths = {(c.members[0].role, len(c.members)) for c in found.groups}
    assert lengths == {(role, length) for role in ("q", "k", "v", "o", "gate", "up", "down") for length in range(1, 6)}
    for lane in found.lanes:
        assert all(len(segments) == 15 for segments in lane.segments.values())


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
    model = PICO["llama"]()
    decoder = describe(model)
    for across_depth, total in ((True, 40), (False, 20)):
        events: list[Progress] = []
        weigher = measured("llama")[2]
        find_candidates(model, decoder, weigher, across_depth=across_depth, progress=events.append)
        assert [event.done for event in events] == list(range(1, total + 1))
        assert {event.total for event in events} == {total}


def test_whether_sharing_pays() -> None:
    _, decoder, _, found = measured("llama")
    private = {c.members[0].name: c for c in found.groups if len(c.members) == 1}
    a, b = (private[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1))
    members = (*a.members, *b.members)
    nothing_in_common = np.concatenate([a.losses + b.losses[0], b.losses[1:]])[: most_rank(list(members)) + 1]
    assert not pays(Candidate(members, nothing_in_common), [a, b])
    all_in_common = a.losses + b.losses
    assert pays(Candidate(members, all_in_common), [a, b])
    assert len(decoder.projections) == len(private)


def test_separate_losses_are_the_best_split_of_a_cost() -> None:
    """On convex curves greedy slopes are exact where the split falls on ranks, and never above any split."""
    _, _, _, found = measured("llama")
    private = {c.members[0].name: c for c in found.groups if len(c.members) == 1}
    pieces = [private[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1)]
    (x, y), (u, w) = (stored_and_lost(piece) for piece in pieces)
    splits = [(x[i] + u[j], y[i] + w[j]) for i in range(len(x)) for j in range(len(u))]
    costs, lost = np.array(splits).T
    assert (separate_losses(pieces, costs) <= lost + 1e-12).all()
    assert separate_losses(pieces, np.array([x[0] + u[0]]))[0] == pytest.approx(y[0] + w[0])
    assert separate_losses(pieces, np.array([x[0] + u[0] - 1.0]))[0] == np.inf
    assert separate_losses(pieces, np.array([1e9]))[0] == pytest.approx(0, abs=1e-12)
