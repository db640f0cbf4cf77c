"""What a planner chooses from: which scopes may be combined, and what their options cost."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from basis_sharing.costs.base import Cost
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.planning.space import Scope, Space, arranged, priced, restricted, search_space
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.treatments.base import Candidate, Curves, Search
from basis_sharing.treatments.factors.options import worthwhile
from measured import prepared, repeated
from pico import PICO


@cache
def measured(name: str, across_roles: bool = True, across_depth: bool = True) -> tuple[Decoder, Space]:
    model, decoder, weighting, curves = prepared(name)
    planning = Planning(across_roles=across_roles, across_depth=across_depth)
    return decoder, search_space(Search(model, decoder, weighting, Parameters(), planning, curves))


def names_of(scope: Scope) -> tuple[str, ...]:
    return tuple(p.name for p in scope.projections)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gemma3", "mixtral", "opt"])
def test_every_lane_can_be_covered_in_every_partition(name: str) -> None:
    decoder, space = measured(name)
    covered: list[str] = []
    for lane in space.lanes:
        for partition in lane.partitions:
            mine = [
                projection
                for part in partition
                for start in range(lane.length)
                for projection in names_of(space.scopes[lane.segments[part][start, start + 1]])
            ]
            assert len(set(mine)) == len(mine)
            assert set(mine) == set(names_in(lane, space))
        covered += mine
    assert sorted(covered) == sorted(p.name for p in decoder.projections)


def names_in(lane: Any, space: Space) -> list[str]:
    return [
        name
        for part in lane.partitions[0]
        for block in range(lane.length)
        for name in names_of(space.scopes[lane.segments[part][block, block + 1]])
    ]


def test_partitions_of_three_roles_and_of_two() -> None:
    _, space = measured("llama")
    assert sorted(len(lane.partitions) for lane in space.lanes) == [1, 1, 2, 5]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_segments_are_the_scopes_that_they_stand_for(name: str) -> None:
    decoder, space = measured(name)
    seen: set[int] = set()
    for lane in space.lanes:
        for part, segments in lane.segments.items():
            for (start, stop), index in segments.items():
                projections = space.scopes[index].projections
                assert {decoder.path_in_block(p) for p in projections} == part
                assert len({p.block for p in projections}) == stop - start
                seen.add(index)
    assert seen == set(range(len(space.scopes))), "nothing was measured in vain"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_sharing_across_depth_it_is_what_would_have_been_measured(name: str) -> None:
    decoder, everything = measured(name)
    _, fewer = measured(name, across_depth=False)
    found = restricted(everything, decoder, across_depth=False)
    assert_same(found, fewer)
    assert_same(restricted(everything, decoder, across_depth=True), everything)


def assert_same(found: Space, expected: Space) -> None:
    for ours, theirs in zip(found.lanes, expected.lanes, strict=True):
        assert set(ours.partitions) == set(theirs.partitions)
        for part, segments in theirs.segments.items():
            assert ours.segments[part].keys() == segments.keys()
            for place, index in segments.items():
                mine, other = found.scopes[ours.segments[part][place]], expected.scopes[index]
                assert mine.projections == other.projections
                for a, b in zip(mine.candidates, other.candidates, strict=True):
                    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("across_roles", "across_depth"), [(False, True), (True, False), (False, False)])
def test_what_may_not_share_is_in_no_lane(across_roles: bool, across_depth: bool) -> None:
    for name in ("llama", "gpt2"):
        decoder, space = measured(name, across_roles, across_depth)
        for lane in space.lanes:
            assert across_roles or len(lane.partitions) == 1
            for segments in lane.segments.values():
                assert across_depth or all(stop - start == 1 for start, stop in segments)
        if not (across_roles or across_depth):
            assert sorted(map(names_of, space.scopes)) == sorted((p.name,) for p in decoder.projections)


def test_what_no_treatment_has_options_for_stays_dense() -> None:
    decoder, space = measured("llama", False, False)
    some = [candidate for scope in space.scopes[::2] for candidate in scope.candidates]
    arranged_again = arranged(decoder, some)
    assert sorted(map(names_of, arranged_again.scopes)) == sorted((p.name,) for p in decoder.projections)
    left = [scope for scope in arranged_again.scopes if not scope.candidates]
    assert len(left) == len(space.scopes) // 2
    for scope in left:
        only = priced(scope, [Parameters(), Multiplications()])
        assert only.places == (None,)
        assert only.entry(0) is None
        assert only.curve.losses.tolist() == [0.0]
        assert only.curve.limits.tolist() == [[Parameters().dense(scope.projections)]] * 2


COSTS: list[Sequence[Cost]] = [
    [Parameters()],
    [Multiplications()],
    [Bytes(2)],
    [Bytes(2), Multiplications()],
    [Parameters(), Bytes(4), Multiplications()],
]


@pytest.mark.parametrize("costs", COSTS, ids=lambda costs: "+".join(cost.name for cost in costs))
def test_priced_options_cost_what_their_entries_cost(costs: Sequence[Cost]) -> None:
    _, space = measured("llama")
    for scope in space.scopes[:: max(1, len(space.scopes) // 8)]:
        found = priced(scope, costs)
        assert (np.diff(found.curve.costs) >= 0).all()
        assert len(found.places) == len(found.curve.costs) == len(found.curve.losses)
        assert found.curve.limits.shape == (len(costs), len(found.places))
        for position in range(len(found.places)):
            entry = found.entry(position)
            for cost, price in zip(costs, found.curve.limits[:, position], strict=True):
                expected = cost.dense(scope.projections) if entry is None else cost.of(scope.projections, entry)
                assert price == expected
            if entry is None:
                assert len(scope.projections) == 1
                assert found.curve.losses[position] == 0
            else:
                (candidate,) = scope.candidates
                assert isinstance(entry, Factors)
                assert entry.members == names_of(scope)
                assert found.curve.losses[position] == candidate.losses[list(candidate.options).index(entry)]


def test_with_one_currency_options_that_cheaper_ones_beat_are_left_out() -> None:
    _, space = measured("llama")
    left_out = 0
    for scope in space.scopes:
        found = priced(scope, [Multiplications()])
        assert (np.diff(found.curve.losses) < 0).all()
        left_out += len(priced(scope, [Parameters(), Multiplications()]).places) - len(found.places)
    assert left_out >= 0


def test_two_treatments_offer_their_options_for_one_scope() -> None:
    """Options of several candidates are priced together, also where one does not price many at once."""
    decoder, _ = measured("llama")
    scope = (decoder.projections[0],)
    options = worthwhile(scope, "plain")
    many = Candidate(scope, options, np.linspace(1, 0.5, len(options)))
    one: list[Entry] = [Factors(members=(scope[0].name,), rank=2, form="pivoted")]
    space = arranged(decoder, [many, Candidate(scope, one, np.array([0.01]))])
    both = next(s for s in space.scopes if s.projections == scope)
    found = priced(both, [Parameters()])
    assert len(both.candidates) == 2
    entries = [found.entry(position) for position in range(len(found.places))]
    assert entries == [many.options[0], one[0], None], "rank 1 is cheaper, every other plain option loses more"


def runs(space: Space, role: str) -> set[int]:
    return {len({p.block for p in s.projections}) for s in space.scopes if {p.role for p in s.projections} == {role}}


def test_whether_sharing_pays_is_asked_in_the_currency_of_the_target() -> None:
    """Blocks that are the same need one basis, but every one of them multiplies with all of it."""
    model = PICO["llama"]()
    decoder = describe(model)
    weighting = repeated(model, decoder, tuple(range(5)))
    planning = Planning(across_roles=False)

    def search(cost: Cost) -> tuple[Space, Curves]:
        curves: Curves = {}
        return search_space(Search(model, decoder, weighting, cost, planning, curves)), curves

    def measured_blocks(curves: Curves, role: str) -> set[int]:
        scopes: list[list[Projection]] = [[decoder.by_name[name] for name in names] for _, *names in curves]
        return {len({p.block for p in scope}) for scope in scopes if scope[0].role == role}

    for cost in (Parameters(), Bytes(4)):
        space, curves = search(cost)
        for role in ("q", "o", "up", "down"):
            assert runs(space, role) == measured_blocks(curves, role) == {1, 2, 3, 4}
    space, curves = search(Multiplications())
    for role in ("q", "o", "up", "down"):
        assert runs(space, role) == {1}, "no group across blocks pays in multiplications"
        assert measured_blocks(curves, role) == {1, 2}, "and longer ones than pairs are not even measured"
