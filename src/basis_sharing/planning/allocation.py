"""Spend a budget where it hurts least: which candidate groups to use, and at which rank (DESIGN 3.4).

Pure numbers: candidates are curves of loss against cost. For a price per unit of cost every candidate has a best rank;
a dynamic programme over depth picks the groups; bisection finds the price at which the budget is met; what the jumps
between neighbouring prices leave over is spent greedily. Curves need not be convex.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from basis_sharing.errors import PlanError

Floats = NDArray[np.float64]

_REST = 1e-4


@dataclass(frozen=True)
class Curve:
    """What a group loses and costs at each rank it may have.

    Attributes:
        ranks: The ranks, ascending; the last one of a private projection means that it stays dense.
        costs: Cost at each rank, ascending.
        losses: Loss at each rank in nats per token.
    """

    ranks: NDArray[np.int64]
    costs: Floats
    losses: Floats

    def best(self, price: float) -> int:
        """Return the position that minimises loss + price x cost."""
        return int((self.losses + price * self.costs).argmin())


Part = frozenset[str]


@dataclass
class Lane:
    """Consecutive blocks whose projections of one input may share: along depth, across roles, or both.

    Attributes:
        length: Number of blocks.
        partitions: The ways to divide the roles into parts that act as one, each a tuple of parts.
        segments: Part -> (first block, block after the last) -> name of the candidate.
    """

    length: int
    partitions: tuple[tuple[Part, ...], ...]
    segments: dict[Part, dict[tuple[int, int], int]]


@dataclass(frozen=True)
class Choice:
    """One chosen candidate and the position on its curve."""

    candidate: int
    position: int


@dataclass(frozen=True)
class Allocation:
    """What was chosen, and what it loses and costs."""

    choices: tuple[Choice, ...]
    loss: float
    cost: float


def allocate(curves: Sequence[Curve], lanes: Sequence[Lane], budget: float) -> Allocation:
    """Return the choice with nearly the least loss whose cost does not exceed the budget.

    Raises:
        PlanError: Even the lowest ranks cost more; says what the least cost is.
    """
    # At one end only costs count, at the other only losses: also between candidates, whose curves know no such price.
    scale = max(curve.losses[0] for curve in curves) / min(curve.costs[0] for curve in curves)
    high, low = 1e9 * scale + 1e-275, 1e-25 * scale + 1e-300
    best = _at_price(curves, lanes, high)
    if best.cost > budget:
        raise UnreachableError(best.cost)
    free = _at_price(curves, lanes, low)
    if free.cost <= budget:
        return free
    for _ in range(100):
        price = (low * high) ** 0.5
        found = _at_price(curves, lanes, price)
        if found.cost > budget:
            low = price
        else:
            high = price
            if found.loss <= best.loss:
                best = found
        if high <= low * (1 + 1e-9) or 0 <= budget - found.cost <= _REST * budget:
            break
    return _spend_rest(curves, best, budget)


class UnreachableError(PlanError):
    """The budget is below the least possible cost.

    Attributes:
        least: That cost.
    """

    def __init__(self, least: float) -> None:
        super().__init__(f"the target cannot be met: even the lowest ranks cost {least:,.0f}.")
        self.least = least


def _at_price(curves: Sequence[Curve], lanes: Sequence[Lane], price: float) -> Allocation:
    choices: list[Choice] = []
    for lane in lanes:
        choices += _best_groups(curves, lane, price)
    return _total(curves, choices)


def _total(curves: Sequence[Curve], choices: Sequence[Choice]) -> Allocation:
    return Allocation(
        tuple(choices),
        loss=float(sum(curves[c.candidate].losses[c.position] for c in choices)),
        cost=float(sum(curves[c.candidate].costs[c.position] for c in choices)),
    )


def _best_groups(curves: Sequence[Curve], lane: Lane, price: float) -> list[Choice]:
    """Divide a lane into stretches of one partition each, and each part of a stretch into segments."""
    value: dict[int, tuple[float, Choice]] = {}
    for segments in lane.segments.values():
        for candidate in segments.values():
            curve = curves[candidate]
            position = curve.best(price)
            value[candidate] = (
                curve.losses[position] + price * curve.costs[position],
                Choice(candidate, position),
            )
    chains = {
        (part, start): _chain(segments, value, start, lane.length)
        for part, segments in lane.segments.items()
        for start in (range(lane.length) if len(lane.partitions) > 1 else (0,))
    }
    choices: list[Choice] = []
    for start, stop, partition in _stretches(chains, lane):
        for part in partition:
            position = stop
            while position > start:
                _, position, candidate = chains[part, start][position]
                choices.append(value[candidate][1])
    return choices


def _stretches(
    chains: Mapping[tuple[Part, int], Mapping[int, tuple[float, int, int]]], lane: Lane
) -> list[tuple[int, int, tuple[Part, ...]]]:
    """Return the best division of a lane into stretches: first block, block after the last, partition."""
    if len(lane.partitions) == 1:
        return [(0, lane.length, lane.partitions[0])]
    best: list[tuple[float, int, tuple[Part, ...]]] = [(0.0, 0, ())]
    for stop in range(1, lane.length + 1):
        options = (
            (best[start][0] + sum(chains[part, start][stop][0] for part in partition), start, partition)
            for start in range(stop)
            for partition in lane.partitions
        )
        best.append(min(options, key=lambda option: option[0]))
    stretches = []
    stop = lane.length
    while stop > 0:
        _, start, partition = best[stop]
        stretches.append((start, stop, partition))
        stop = start
    return stretches


def _chain(
    segments: Mapping[tuple[int, int], int], value: Mapping[int, tuple[float, Choice]], start: int, length: int
) -> dict[int, tuple[float, int, int]]:
    """Return the best way to cover ``start..stop`` with segments: stop -> value, last segment's start, candidate."""
    ending: dict[int, list[tuple[int, int]]] = {}
    for (first, stop), candidate in segments.items():
        if first >= start:
            ending.setdefault(stop, []).append((first, candidate))
    best: dict[int, tuple[float, int, int]] = {start: (0.0, start, -1)}
    for stop in range(start + 1, length + 1):
        options = [
            (best[first][0] + value[candidate][0], first, candidate)
            for first, candidate in ending.get(stop, ())
            if first in best
        ]
        best[stop] = min(options, default=(inf, start, -1))
    return best


def _spend_rest(curves: Sequence[Curve], found: Allocation, budget: float) -> Allocation:
    """Raise ranks as long as the budget allows, always where a unit of cost gains most."""
    positions = {choice.candidate: choice.position for choice in found.choices}
    rest = budget - found.cost

    def best_step(candidate: int) -> tuple[float, int]:
        curve, now = curves[candidate], positions[candidate]
        stop = int(np.searchsorted(curve.costs, curve.costs[now] + rest, side="right"))
        if stop <= now + 1:
            return 0.0, now
        rates = (curve.losses[now] - curve.losses[now + 1 : stop]) / (curve.costs[now + 1 : stop] - curve.costs[now])
        step = int(rates.argmax())
        return float(rates[step]), now + 1 + step

    while True:
        (rate, position), candidate = max((best_step(candidate), candidate) for candidate in positions)
        if rate <= 0:
            return _total(curves, [Choice(*item) for item in positions.items()])
        rest -= curves[candidate].costs[position] - curves[candidate].costs[positions[candidate]]
        positions[candidate] = position
