"""Every group of factors the planner may choose, each with what it loses at every rank.

Private projections, roles that read one input jointly, the same role in neighbouring blocks, and both together. Shared
scopes grow from pairs: a longer one is only measured where its shorter ones pay, in the currency of the target, at some
price that a reasonable target can lead to.
"""

import functools
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
import torch
from torch import Tensor

from basis_sharing.costs.base import Cost, shapes_of
from basis_sharing.linalg.truncation import Member, left_product, losses, losses_of_product
from basis_sharing.models.family import Projection
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.format_basis_sharing import Factors, most_rank
from basis_sharing.treatments.base import Candidate, CurveKey, Curves, Floats, Search
from basis_sharing.treatments.factors.options import FactorOptions, all_ranks, worthwhile
from basis_sharing.treatments.scopes import Blocks, Part, lanes_of, parts_in, scope_of, ways_to_divide

_KEPT = (0.95, 0.25)
_PRICES = 32
_LEAST_GAIN = 2e-3


@dataclass(frozen=True)
class Group:
    """Projections that may share a basis.

    Attributes:
        scope: The projections.
        losses: Expected loss rise in nats per token at rank 0, 1, ..., the highest useful rank (where it is 0).
        options: The ranks from 1 on.
        costs: What these cost.
        dense: What the projections cost as they are.
    """

    scope: tuple[Projection, ...]
    losses: Floats
    options: FactorOptions
    costs: Floats
    dense: float


@dataclass
class _Lane:
    """A lane and the groups in it: part -> (first block, block after the last) -> group."""

    blocks: Blocks
    parts: list[Part]
    groups: dict[Part, dict[tuple[int, int], Group]] = field(default_factory=dict)


def factor_candidates(search: Search) -> list[Candidate]:
    """Measure all groups, and return them with the ranks that are worth choosing from."""
    return [_candidate(group, search) for group in find_groups(search)]


def _candidate(group: Group, search: Search) -> Candidate:
    planning = search.planning
    options = worthwhile(group.scope, planning.stored_form, planning.rank_multiple)
    return Candidate(group.scope, options, group.losses[options.ranks])


def find_groups(search: Search) -> list[Group]:
    """Measure all groups of a model.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    planning = search.planning
    lanes = [
        _Lane(blocks, parts_in(ways_to_divide(blocks[0], search.decoder, across_roles=planning.across_roles)))
        for blocks in lanes_of(search.decoder)
    ]
    groups = _within_blocks(search, lanes)
    if planning.across_depth:
        groups += _across_blocks(search, lanes, prices_of(groups))
    return groups


def _within_blocks(search: Search, lanes: Sequence[_Lane]) -> list[Group]:
    """Measure the groups inside single blocks, and put them into their lanes."""
    inputs = [(block, lane.parts) for lane in lanes for block in lane.blocks]

    def measure(position: int, curves: Curves) -> None:
        for _ in _within_block(search, *inputs[position], curves):
            pass

    _measure_ahead(measure, len(inputs), search, "measuring candidates", "inputs")
    groups: list[Group] = []
    done = 0
    for lane in lanes:
        lane.groups = {part: {} for part in lane.parts}
        for position, block in enumerate(lane.blocks):
            known = len(search.curves)
            for part, group in _within_block(search, block, lane.parts, search.curves):
                lane.groups[part][position, position + 1] = group
                groups.append(group)
            done += 1
            if len(search.curves) > known:
                search.progress(Progress("measuring candidates", done, len(inputs), "inputs"))
    return groups


def _across_blocks(search: Search, lanes: Sequence[_Lane], prices: Floats) -> list[Group]:
    """Measure the groups that span blocks and pay; return them."""
    shared = [(lane, part) for lane in lanes for part in _worth_sharing(lane, prices)]

    def measure(position: int, curves: Curves) -> None:
        lane, part = shared[position]
        _grow(search, lane.blocks, part, dict(lane.groups[part]), prices, curves)

    _measure_ahead(measure, len(shared), search, "measuring shared candidates", "roles")
    groups: list[Group] = []
    for done, (lane, part) in enumerate(shared, start=1):
        known = len(search.curves)
        groups += _grow(search, lane.blocks, part, lane.groups[part], prices, search.curves)
        if len(search.curves) > known:
            search.progress(Progress("measuring shared candidates", done, len(shared), "roles"))
    return groups


def _measure_ahead(measure: Callable[[int, Curves], None], count: int, search: Search, stage: str, unit: str) -> None:
    """Where there are several processes, measure this one's share of some items, and exchange the losses."""
    processes = search.processes
    if processes.count == 1:
        return
    own, added = processes.own(range(count)), _Added(search.curves)
    for done, position in enumerate(own, start=1):
        measure(position, added)
        search.progress(Progress(stage, done, len(own), unit))
    for index, new in enumerate(processes.gather(added.new)):
        if index != processes.index:
            search.curves.update(new)


class _Added(MutableMapping[CurveKey, Floats]):
    """Curves that remember which of them are new."""

    def __init__(self, curves: Curves) -> None:
        self._curves, self.new = curves, dict[CurveKey, Floats]()

    def __getitem__(self, key: CurveKey) -> Floats:
        return self._curves[key]

    def __setitem__(self, key: CurveKey, losses: Floats) -> None:
        self._curves[key] = self.new[key] = losses

    def __delitem__(self, key: CurveKey) -> None:
        del self._curves[key]

    def __iter__(self) -> Iterator[CurveKey]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)


def _worth_sharing(lane: _Lane, prices: Floats) -> Iterator[Part]:
    """Yield the parts to measure across depth: single roles, and joint ones that pay within some block."""
    for part, groups in lane.groups.items():
        if len(part) == 1 or any(
            pays(group, [lane.groups[frozenset([path])][block] for path in part], prices)
            for block, group in groups.items()
        ):
            yield part


def prices_of(groups: Sequence[Group]) -> Floats:
    """Return prices that span targets from little to most removed, in nats per token and unit of cost."""
    private = [group for group in groups if len(group.scope) == 1]
    dense = sum(group.dense for group in private)

    def logarithm_at(kept: float) -> float:
        low, high = -80.0, 20.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            cost = sum(g.costs[(g.losses[1:] + exp(middle) * g.costs).argmin()] for g in private)
            low, high = (middle, high) if cost > kept * dense else (low, middle)
        return high

    most, least = _KEPT
    prices: Floats = np.exp(np.linspace(logarithm_at(most), logarithm_at(least), _PRICES))
    return prices


def _within_block(
    search: Search, block: Sequence[Projection], parts: Sequence[Part], curves: Curves
) -> Iterator[tuple[Part, Group]]:
    """Yield the groups of one block: products of roles with one weighting are computed once and added up."""
    problem: dict[Projection, Member] = {}
    products: dict[Projection, Tensor] = {}

    def measure(members: Sequence[Projection]) -> Tensor:
        if not problem:
            problem.update(zip(block, search.weighting.problem(search.model, block), strict=True))
        alike = all(problem[p].input_key == problem[members[0]].input_key for p in members)
        if not alike or sum(p.d_out for p in members) < members[0].d_in:
            return losses([problem[p] for p in members])
        for p in members:
            if p not in products:
                products[p] = left_product(problem[p])
        total = functools.reduce(torch.add, (products[p] for p in members))
        return losses_of_product(total, most_rank(shapes_of(members)))

    for part in parts:
        yield part, _group(scope_of(part, [block], search.decoder), search, curves, measure)


def _group(
    scope: tuple[Projection, ...], search: Search, curves: Curves, measure: Callable[[Sequence[Projection]], Tensor]
) -> Group:
    """Return a group, measured unless its losses are known."""
    key = (Factors.kind, *(p.name for p in scope))
    known = curves.get(key)
    if known is None:
        known = curves[key] = measure(scope).numpy()
    return group_of(scope, known, search.cost, all_ranks(scope, search.planning.stored_form))


def group_of(scope: tuple[Projection, ...], losses: Floats, cost: Cost, options: FactorOptions) -> Group:
    """Return a group with the price of every rank."""
    costs: Floats = np.asarray(cost.of(scope, options), dtype=float)
    return Group(scope, losses, options, costs, float(cost.dense(scope)))


def _grow(
    search: Search,
    blocks: Blocks,
    part: Part,
    groups: dict[tuple[int, int], Group],
    prices: Floats,
    curves: Curves,
) -> list[Group]:
    """Add the groups of a part that pay: pairs, then what two paying groups of about half the length make."""
    added = []
    for length in _lengths(len(blocks)):
        for start in range(len(blocks) - length + 1):
            cut, stop = start + (length + 1) // 2, start + length
            if (start, cut) not in groups or (cut, stop) not in groups:
                continue
            scope = scope_of(part, blocks[start:stop], search.decoder)
            shared = _group(scope, search, curves, lambda s: losses(search.weighting.problem(search.model, s)))
            if pays(shared, [groups[start, cut], groups[cut, stop]], prices):
                groups[start, stop] = shared
                added.append(shared)
    return added


def _lengths(blocks: int) -> list[int]:
    """Return 2, 3, 4, 6, 8, 12, ...: halves of one are another, and runs of any length are made of few of them."""
    powers = [2**i for i in range(1, max(2, blocks.bit_length()))]
    return sorted(length for power in powers for length in (power, power * 3 // 2) if length <= blocks)


def pays(shared: Group, pieces: Sequence[Group], prices: Floats) -> bool:
    """Whether a group is worth more than its pieces at one of the prices per unit of cost."""

    def worth(group: Group) -> Floats:
        least: Floats = (group.losses[1:][None] + prices[:, None] * group.costs[None]).min(1)
        return least

    separate = np.sum([worth(piece) for piece in pieces], axis=0)
    return bool((worth(shared) < (1 - _LEAST_GAIN) * separate).any())
