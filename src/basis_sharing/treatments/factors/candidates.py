"""Every group the planner may choose, each with what it loses at every rank (DESIGN 3.4).

Private projections, roles that read one input jointly, the same role in neighbouring blocks, and both together. Shared
segments grow from pairs: a longer one is only looked at where its shorter ones pay, at some price that a reasonable
target can lead to.
"""

import functools
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_sharing.linalg.truncation import Member, left_product, losses, losses_of_product
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.planning.allocation import Floats, Lane, Part
from basis_sharing.plans.plan import most_rank
from basis_sharing.run.processes import Ranks
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.weightings.weighting import Weigher

Curves = MutableMapping[tuple[str, ...], Floats]

_MOST_JOINT_ROLES = 4
_KEPT = (0.95, 0.25)
_PRICES = 32
_LEAST_GAIN = 2e-3


@dataclass(frozen=True)
class Candidate:
    """A possible group.

    Attributes:
        members: Its projections, by block and then in their order within a block.
        losses: Expected loss rise in nats per token at rank 0, 1, ..., the highest useful rank (where it is 0).
    """

    members: tuple[Projection, ...]
    losses: Floats


@dataclass
class Candidates:
    """All candidates of a model, and how they may be combined."""

    groups: list[Candidate] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)

    def restricted(self, *, across_roles: bool, across_depth: bool) -> "Candidates":
        """Return what would have been found without some kinds of sharing, with nothing measured again."""
        lanes = []
        for lane in self.lanes:
            partitions = [ps for ps in lane.partitions if across_roles or all(len(part) == 1 for part in ps)]
            segments = {
                part: {(a, b): index for (a, b), index in lane.segments[part].items() if across_depth or b - a == 1}
                for part in dict.fromkeys(part for ps in partitions for part in ps)
            }
            lanes.append(Lane(lane.length, tuple(partitions), segments))
        return Candidates(self.groups, lanes)


def find_candidates(
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    *,
    across_roles: bool = True,
    across_depth: bool = True,
    curves: Curves | None = None,
    ranks: Ranks | None = None,
    progress: ProgressCallback = silent,
) -> Candidates:
    """Measure all candidates of a model.

    Args:
        model: The dense model.
        decoder: Its structure.
        weigher: Poses the problem of each group; its losses are in nats per token.
        across_roles: Whether projections that read one input may share.
        across_depth: Whether projections of neighbouring blocks may share.
        curves: Loss curves by the names of a group's members, read and added to.
        ranks: The processes that divide the measurements among them; all of them find the same.
        progress: Receives one event per block and input, and one per role that is looked at across depth.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    found, curves, ranks = Candidates(), {} if curves is None else curves, ranks or Ranks()
    lanes = list(_lanes(decoder))
    partitions = [_ways_to_divide(lane[0], decoder, across_roles) for lane in lanes]
    parts = [list(dict.fromkeys(part for ps in ways for part in ps)) for ways in partitions]
    inputs = [(block, lane_parts) for lane, lane_parts in zip(lanes, parts, strict=True) for block in lane]

    def measure(position: int, curves: Curves) -> None:
        for _ in _within_block(model, decoder, weigher, *inputs[position], curves):
            pass

    _measure_ahead(measure, len(inputs), curves, ranks, "measuring candidates", "inputs", progress)
    done = 0
    for lane, ways, lane_parts in zip(lanes, partitions, parts, strict=True):
        segments: dict[Part, dict[tuple[int, int], int]] = {part: {} for part in lane_parts}
        for position, block in enumerate(lane):
            known = len(curves)
            for part, candidate in _within_block(model, decoder, weigher, block, lane_parts, curves):
                segments[part][position, position + 1] = len(found.groups)
                found.groups.append(candidate)
            done += 1
            if len(curves) > known:
                progress(Progress("measuring candidates", done, len(inputs), "inputs"))
        found.lanes.append(Lane(len(lane), ways, segments))
    if not across_depth:
        return found
    prices = _prices(found)
    shared = [
        (blocks, part, lane.segments[part])
        for lane, blocks in zip(found.lanes, lanes, strict=True)
        for part in _worth_sharing(lane, found.groups, prices)
    ]

    def measure_shared(position: int, curves: Curves) -> None:
        blocks, part, grown = shared[position]
        _grow(model, decoder, weigher, blocks, part, dict(grown), list(found.groups), prices, curves)

    _measure_ahead(measure_shared, len(shared), curves, ranks, "measuring shared candidates", "roles", progress)
    for done, (blocks, part, grown) in enumerate(shared, start=1):
        known = len(curves)
        _grow(model, decoder, weigher, blocks, part, grown, found.groups, prices, curves)
        if len(curves) > known:
            progress(Progress("measuring shared candidates", done, len(shared), "roles"))
    return found


def _measure_ahead(
    measure: Callable[[int, Curves], None],
    count: int,
    curves: Curves,
    ranks: Ranks,
    stage: str,
    unit: str,
    progress: ProgressCallback,
) -> None:
    """Where there are several processes, measure this one's share of some items, and exchange what was found."""
    if ranks.size == 1:
        return
    own, added = ranks.own(range(count)), _Added(curves)
    for done, position in enumerate(own, start=1):
        measure(position, added)
        progress(Progress(stage, done, len(own), unit))
    for rank, new in enumerate(ranks.gather(added.new)):
        if rank != ranks.rank:
            curves.update(new)


class _Added(MutableMapping[tuple[str, ...], Floats]):
    """Curves that remember which of them are new."""

    def __init__(self, curves: Curves) -> None:
        self._curves, self.new = curves, dict[tuple[str, ...], Floats]()

    def __getitem__(self, names: tuple[str, ...]) -> Floats:
        return self._curves[names]

    def __setitem__(self, names: tuple[str, ...], losses: Floats) -> None:
        self._curves[names] = self.new[names] = losses

    def __delitem__(self, names: tuple[str, ...]) -> None:
        del self._curves[names]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)


def _ways_to_divide(block: Sequence[Projection], decoder: Decoder, across_roles: bool) -> tuple[tuple[Part, ...], ...]:
    slots = [_slot(p, decoder) for p in block]
    return _partitions(slots) if across_roles else (tuple(frozenset([slot]) for slot in slots),)


def _worth_sharing(lane: Lane, groups: Sequence[Candidate], prices: Floats) -> Iterator[Part]:
    """Yield the parts to look at across depth: single roles, and joint ones that pay within some block."""
    for part, segments in lane.segments.items():
        if len(part) == 1 or any(
            pays(groups[index], [groups[lane.segments[frozenset([slot])][block]] for slot in part], prices)
            for block, index in segments.items()
        ):
            yield part


def _prices(found: Candidates) -> Floats:
    """Return prices that span targets from few to most parameters removed, in nats per token and parameter."""
    private = [stored_and_lost(candidate) for candidate in found.groups if len(candidate.members) == 1]
    dense = sum(costs[-1] for costs, _ in private)

    def logarithm_at(kept: float) -> float:
        low, high = -80.0, 20.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            cost = sum(costs[(lost + exp(middle) * costs).argmin()] for costs, lost in private)
            low, high = (middle, high) if cost > kept * dense else (low, middle)
        return high

    most, least = _KEPT
    prices: Floats = np.exp(np.linspace(logarithm_at(most), logarithm_at(least), _PRICES))
    return prices


def _lanes(decoder: Decoder) -> Iterator[list[list[Projection]]]:
    """Yield runs of consecutive blocks that have the same projections, in the same shapes, on one input."""
    inputs = list(dict.fromkeys(p.input for p in decoder.projections))
    for name in inputs:
        run: list[list[Projection]] = []
        for index in range(len(decoder.blocks)):
            block = [p for p in decoder.projections if p.block == index and p.input == name]
            if run and _shape(run[-1], decoder) != _shape(block, decoder):
                yield run
                run = []
            if block:
                run.append(block)
        if run:
            yield run


def _shape(block: Sequence[Projection], decoder: Decoder) -> list[tuple[str, int, int]]:
    return [(_slot(p, decoder), p.d_in, p.d_out) for p in block]


def _slot(projection: Projection, decoder: Decoder) -> str:
    """Return the place of a projection inside its block."""
    return projection.name.removeprefix(f"{decoder.blocks[projection.block]}.")


def _partitions(slots: Sequence[str]) -> tuple[tuple[Part, ...], ...]:
    """Return all ways to divide slots into parts; for many slots only the finest and the coarsest."""
    finest = tuple(frozenset([slot]) for slot in slots)
    if len(slots) == 1:
        return (finest,)
    if len(slots) > _MOST_JOINT_ROLES:
        return (finest, (frozenset(slots),))
    first, *rest = slots
    found: list[tuple[Part, ...]] = []
    for size in range(len(slots)):
        for others in combinations(rest, size):
            left = [slot for slot in rest if slot not in others]
            tails = _partitions(left) if left else ((),)
            found += [(frozenset([first, *others]), *tail) for tail in tails]
    return tuple(found)


def _within_block(
    model: Any, decoder: Decoder, weigher: Weigher, block: Sequence[Projection], parts: Sequence[Part], curves: Curves
) -> Iterator[tuple[Part, Candidate]]:
    """Yield the candidates of one block: products of roles with one weighting are computed once and added up."""
    problem: dict[Projection, Member] = {}
    products: dict[Projection, Tensor] = {}

    def measure(members: Sequence[Projection]) -> Tensor:
        if not problem:
            problem.update(zip(block, weigher.problem(model, block), strict=True))
        alike = all(problem[p].input_key == problem[members[0]].input_key for p in members)
        if not alike or sum(p.d_out for p in members) < members[0].d_in:
            return losses([problem[p] for p in members])
        for p in members:
            if p not in products:
                products[p] = left_product(problem[p])
        total = functools.reduce(torch.add, (products[p] for p in members))
        return losses_of_product(total, most_rank(list(members)))

    for part in parts:
        members = tuple(p for p in block if _slot(p, decoder) in part)
        yield part, _candidate(members, curves, measure)


def _candidate(
    members: tuple[Projection, ...], curves: Curves, measure: Callable[[Sequence[Projection]], Tensor]
) -> Candidate:
    """Return a candidate, measured unless its curve is known."""
    names = tuple(p.name for p in members)
    curve = curves.get(names)
    if curve is None:
        curve = curves[names] = measure(members).numpy()
    return Candidate(members, curve)


def _grow(
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    blocks: Sequence[Sequence[Projection]],
    part: Part,
    segments: dict[tuple[int, int], int],
    groups: list[Candidate],
    prices: Floats,
    curves: Curves,
) -> None:
    """Add the segments of a part that pay: pairs, then what two paying segments of about half the length make."""
    for length in _lengths(len(blocks)):
        for start in range(len(blocks) - length + 1):
            cut, stop = start + (length + 1) // 2, start + length
            if (start, cut) not in segments or (cut, stop) not in segments:
                continue
            members = tuple(p for block in blocks[start:stop] for p in block if _slot(p, decoder) in part)
            shared = _candidate(members, curves, lambda members: losses(weigher.problem(model, members)))
            if pays(shared, [groups[segments[start, cut]], groups[segments[cut, stop]]], prices):
                segments[start, stop] = len(groups)
                groups.append(shared)


def _lengths(blocks: int) -> list[int]:
    """Return 2, 3, 4, 6, 8, 12, ...: halves of one are another, and runs of any length are made of few of them."""
    powers = [2**i for i in range(1, max(2, blocks.bit_length()))]
    return sorted(length for power in powers for length in (power, power * 3 // 2) if length <= blocks)


def pays(shared: Candidate, pieces: Sequence[Candidate], prices: Floats) -> bool:
    """Whether a group is worth more than its pieces at one of the prices per stored parameter."""

    def worth(candidate: Candidate) -> Floats:
        costs, lost = stored_and_lost(candidate)
        least: Floats = (lost[None] + prices[:, None] * costs[None]).min(1)
        return least

    separate = np.sum([worth(piece) for piece in pieces], axis=0)
    return bool((worth(shared) < (1 - _LEAST_GAIN) * separate).any())


def stored_and_lost(candidate: Candidate) -> tuple[Floats, Floats]:
    """Return the stored parameters (pivoted) and the losses of a group at ranks 1, 2, ..."""
    d_in, outputs = candidate.members[0].d_in, sum(p.d_out for p in candidate.members)
    ranks = np.arange(1.0, len(candidate.losses))
    return ranks * (d_in + outputs) - ranks**2, candidate.losses[1:]


def separate_losses(pieces: Sequence[Candidate], costs: Floats) -> Floats:
    """Return the least sum of the losses of several groups at given total costs (between ranks: interpolated)."""
    steps: list[tuple[float, float, float]] = []
    first_cost, first_loss = 0.0, 0.0
    for piece in pieces:
        x, y = stored_and_lost(piece)
        hull = _lower_hull(x, y)
        widths, drops = np.diff(x[hull]), np.diff(y[hull])
        steps += zip(drops / widths, widths, drops, strict=True)
        first_cost += x[0]
        first_loss += y[0]
    steps.sort()
    x = np.cumsum([first_cost, *(width for _, width, _ in steps)])
    y = np.cumsum([first_loss, *(drop for _, _, drop in steps)])
    return np.interp(costs, x, y, left=np.inf)


def _lower_hull(x: Floats, y: Floats) -> list[int]:
    """Return the positions of the lower convex hull of points with ascending x, up to the lowest y."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    while len(hull) > 1 and y[hull[-1]] >= y[hull[-2]]:
        hull.pop()
    return hull
