"""The groups of projections that the planner may factorize with one basis, with their losses at every rank.

A group is a single projection, several roles that read one input, the same role in consecutive blocks, or a combination
of both. Groups across blocks are built up from pairs: a longer group is measured only if the shorter ones it consists
of are better than separate bases, in the currency of the target, at one of the prices that common targets lead to. A
role of which none of a few pairs pays, taken from all depths, is given up.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
import torch

from basis_sharing.costs.base import Cost
from basis_sharing.linalg.group_losses import GroupLosses
from basis_sharing.models.family import Projection
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.base import Candidate, CurveKey, Curves, Floats, Search
from basis_sharing.treatments.factors.options import FactorOptions, all_ranks, worthwhile
from basis_sharing.treatments.factors.rounded_candidates import rounded_candidates
from basis_sharing.treatments.scopes import Part, lanes_of, parts_in, scope_of, ways_to_divide

_KEPT = (0.95, 0.25)
_PRICES = 32
_LEAST_GAIN = 2e-3
_PROBES = 7
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Group:
    """Projections that may share a basis.

    Attributes:
        scope: The projections.
        losses: Expected loss rise in nats per token at rank 0, 1, ..., the highest useful rank (where it is 0).
        options: The options at ranks 1, 2, ...
        costs: Costs of the options.
        dense: Cost of the dense projections.
    """

    scope: tuple[Projection, ...]
    losses: Floats
    options: FactorOptions
    costs: Floats
    dense: float


@dataclass
class _Lane:
    """A run of blocks, see :mod:`basis_sharing.treatments.scopes`, with its measured groups.

    Attributes:
        blocks: For every block, its projections on the lane's input.
        parts: The parts to measure.
        groups: Part -> (first block, block after the last) -> group.
    """

    blocks: list[list[Projection]]
    parts: list[Part]
    groups: dict[Part, dict[tuple[int, int], Group]] = field(default_factory=dict)


def factor_candidates(search: Search) -> list[Candidate]:
    """Return the candidates of all measured groups, with the ranks at which they are smaller than dense weights."""
    groups = find_groups(search)
    plain = [_candidate(group, search) for group in groups]
    return [*plain, *rounded_candidates([group.scope for group in groups], search)]


def _candidate(group: Group, search: Search) -> Candidate:
    options = worthwhile(group.scope, search.planning.stored_form, search.multiple(group.scope))
    return Candidate(group.scope, options, group.losses[options.ranks])


def find_groups(search: Search) -> list[Group]:
    """Return all groups of a model that the planner may choose, with their losses measured.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    planning = search.planning
    lanes = [
        _Lane(blocks, parts_in(ways_to_divide(blocks[0], search.decoder, across_roles=planning.across_roles)))
        for blocks in lanes_of(search.decoder.projections, search.decoder)
    ]
    found = GroupLosses(search.weighting.remembered_bytes, products=torch.float32)
    groups = _within_blocks(search, lanes, found)
    if planning.across_depth:
        groups += _across_blocks(search, lanes, prices_of(groups), found)
    return groups


def _within_blocks(search: Search, lanes: Sequence[_Lane], found: GroupLosses) -> list[Group]:
    """Measure the groups within single blocks, add them to their lanes, and return them."""
    inputs = [(lane, position) for lane in lanes for position in range(len(lane.blocks))]

    def groups_of(lane: _Lane, position: int, curves: Curves) -> Iterator[tuple[Part, Group]]:
        for part in lane.parts:
            scope = scope_of(part, lane.blocks[position : position + 1], search.decoder)
            yield part, _group(scope, search, curves, found)

    def measure(number: int, curves: Curves) -> None:
        for _ in groups_of(*inputs[number], curves):
            pass

    _measure_ahead(measure, len(inputs), search, "measuring candidates", "inputs")
    groups: list[Group] = []
    for lane in lanes:
        lane.groups = {part: {} for part in lane.parts}
    for done, (lane, position) in enumerate(inputs, start=1):
        known = len(search.curves)
        for part, group in groups_of(lane, position, search.curves):
            lane.groups[part][position, position + 1] = group
            groups.append(group)
        if len(search.curves) > known:
            search.progress(Progress("measuring candidates", done, len(inputs), "inputs"))
    return groups


def _across_blocks(search: Search, lanes: Sequence[_Lane], prices: Floats, found: GroupLosses) -> list[Group]:
    """Measure the groups across blocks that may pay, and return those that do."""
    shared = [(lane, part) for lane in lanes for part in _worth_sharing(lane, prices)]

    def measure(position: int, curves: Curves) -> None:
        lane, part = shared[position]
        _grow(search, lane.blocks, part, dict(lane.groups[part]), prices, curves, found)

    _measure_ahead(measure, len(shared), search, "measuring shared candidates", "roles")
    groups: list[Group] = []
    for done, (lane, part) in enumerate(shared, start=1):
        known = len(search.curves)
        groups += _grow(search, lane.blocks, part, lane.groups[part], prices, search.curves, found)
        if len(search.curves) > known:
            search.progress(Progress("measuring shared candidates", done, len(shared), "roles"))
    return groups


def _measure_ahead(measure: Callable[[int, Curves], None], count: int, search: Search, stage: str, unit: str) -> None:
    """With several processes, measure this process's share of ``count`` items, and exchange the losses."""
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
    """A view of curves that also records the added ones in ``new``."""

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
    """Yield the parts to measure across blocks: single roles, and joint ones that pay within at least one block."""
    for part, groups in lane.groups.items():
        if len(part) == 1 or any(
            pays(group, [lane.groups[frozenset([path])][block] for path in part], prices)
            for block, group in groups.items()
        ):
            yield part


def prices_of(groups: Sequence[Group]) -> Floats:
    """Return prices, in nats per token per unit of cost, that lead to keeping between 95 % and 25 % of the dense cost.

    They are computed for single projections and spaced logarithmically.
    """
    private = [group for group in groups if len(group.scope) == 1]
    dense = sum(group.dense for group in private)

    def logarithm_at(kept: float) -> float:
        """Return the logarithm of the price at which the fraction ``kept`` of the dense cost is kept."""
        low, high = -80.0, 20.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            cost = sum(g.costs[(g.losses[1:] + exp(middle) * g.costs).argmin()] for g in private)
            low, high = (middle, high) if cost > kept * dense else (low, middle)
        return high

    most, least = _KEPT
    prices: Floats = np.exp(np.linspace(logarithm_at(most), logarithm_at(least), _PRICES))
    return prices


def _group(scope: tuple[Projection, ...], search: Search, curves: Curves, found: GroupLosses) -> Group:
    """Return a group, with its losses from ``curves`` or else measured and added to them."""
    key = (Factors.kind, *(p.name for p in scope))
    curve = curves.get(key)
    if curve is None:
        curve = curves[key] = found.measured(search.weighting.problem(search.model, scope)).numpy()
    return group_of(scope, curve, search.cost, all_ranks(scope, search.planning.stored_form))


def group_of(scope: tuple[Projection, ...], losses: Floats, cost: Cost, options: FactorOptions) -> Group:
    """Return a group with the cost of every option."""
    costs: Floats = np.asarray(cost.of(scope, options), dtype=float)
    return Group(scope, losses, options, costs, float(cost.dense(scope)))


def _grow(
    search: Search,
    blocks: list[list[Projection]],
    part: Part,
    groups: dict[tuple[int, int], Group],
    prices: Floats,
    curves: Curves,
    found: GroupLosses,
) -> list[Group]:
    """Add the groups of a part across blocks that pay to ``groups``, and return them.

    A few pairs of blocks, spread over the depth, are measured first: if none of them pays, the part is given up. A
    longer group is measured if its two halves are in ``groups``.
    """
    added: list[Group] = []

    def measure(start: int, stop: int) -> None:
        """Measure a group, and add it if it pays."""
        cut = start + (stop - start + 1) // 2
        scope = scope_of(part, blocks[start:stop], search.decoder)
        shared = _group(scope, search, curves, found)
        if pays(shared, [groups[start, cut], groups[cut, stop]], prices):
            groups[start, stop] = shared
            added.append(shared)

    spread = sorted(range(len(blocks) - 1), key=lambda start: start * _GOLDEN % 1)
    for start in spread[:_PROBES]:
        measure(start, start + 2)
    if not added:
        return []
    for start in spread[_PROBES:]:
        measure(start, start + 2)
    for stop in range(3, len(blocks) + 1):
        for length in _lengths(stop)[1:]:
            start = stop - length
            cut = start + (length + 1) // 2
            if (start, cut) in groups and (cut, stop) in groups:
                measure(start, stop)
    return added


def _lengths(blocks: int) -> list[int]:
    """Return the lengths 2, 3, 4, 6, 8, 12, ... up to ``blocks``, whose halves are also such lengths or 1."""
    powers = [2**i for i in range(1, max(2, blocks.bit_length()))]
    return sorted(length for power in powers for length in (power, power * 3 // 2) if length <= blocks)


def pays(shared: Group, pieces: Sequence[Group], prices: Floats) -> bool:
    """Return whether sharing one basis is better than separate ones for the pieces at one of the prices."""

    def lagrangian(group: Group) -> Floats:
        """Return the minimum of loss + price x cost at every price."""
        least: Floats = (group.losses[1:][None] + prices[:, None] * group.costs[None]).min(1)
        return least

    separate = np.sum([lagrangian(piece) for piece in pieces], axis=0)
    return bool((lagrangian(shared) < (1 - _LEAST_GAIN) * separate).any())
