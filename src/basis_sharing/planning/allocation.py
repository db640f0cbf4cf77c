"""Choice of candidates and options that minimises the total loss within budgets (Lagrangian relaxation).

At a price per unit of cost, the best option of every candidate minimises loss + price x cost, and a dynamic programme
over depth chooses the candidates. Bisection finds the price at which the budget is met; what is left of the budget is
spent greedily. Losses need not be convex in costs. This module works on arrays of losses and costs only.

With several limits, each one is first used alone; if every such choice exceeds another limit, the price is paid for
weighted sums of the costs, with a fixed set of weights. Costs need not rise with rank: time does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray

from basis_sharing.errors import PlanError
from basis_sharing.treatments.scopes import Part

Floats = NDArray[np.float64]

_REST = 1e-4
_MIXTURES = {2: 13, 3: 6, 4: 5}
"""By the number of limits, the parts into which all weights are divided if several limits bind."""


@dataclass(frozen=True)
class Curve:
    """The losses and costs of a candidate's options.

    Attributes:
        costs: Cost of every option, which is multiplied by the price.
        losses: Loss of every option in nats per token.
        limited: Cost of every option under every limit, shape ``[limits, options]``; None: there is one, ``costs``.
    """

    costs: Floats
    losses: Floats
    limited: Floats | None = None

    def best(self, price: float) -> int:
        """Return the position of the option that minimises loss + price x cost."""
        return int((self.losses + price * self.costs).argmin())

    @property
    def limits(self) -> Floats:
        """Cost of every option under every limit, shape ``[limits, options]``."""
        return self.costs[None] if self.limited is None else self.limited


@dataclass
class Lane:
    """Consecutive blocks whose projections of one input may share a basis: across blocks, across roles, or both.

    Attributes:
        length: Number of blocks.
        partitions: The ways to divide the projections of a block into parts.
        segments: Part -> (first block, block after the last) -> index of the candidate.
    """

    length: int
    partitions: tuple[tuple[Part, ...], ...]
    segments: dict[Part, dict[tuple[int, int], int]]


@dataclass(frozen=True)
class Choice:
    """One chosen candidate and the position of its option."""

    candidate: int
    position: int


@dataclass(frozen=True)
class Allocation:
    """The chosen options with their total loss and costs.

    Attributes:
        choices: The chosen options; every projection is in exactly one of them.
        loss: Sum of their losses, in nats per token.
        costs: Sum of their costs under every limit, shape ``[limits]``.
    """

    choices: tuple[Choice, ...]
    loss: float
    costs: Floats

    def within(self, budgets: Floats) -> bool:
        """Return whether no cost exceeds its budget."""
        return bool((self.costs <= budgets).all())


class UnreachableError(PlanError):
    """A budget is below the least possible cost.

    Attributes:
        limit: Position of the limit whose budget is too small.
        least: The least possible cost under this limit.
    """

    def __init__(self, limit: int, least: float) -> None:
        super().__init__(f"the target cannot be met: even the cheapest options cost {least:,.0f}.")
        self.limit, self.least = limit, least


def allocate(curves: Sequence[Curve], lanes: Sequence[Lane], budgets: Sequence[float]) -> Allocation:
    """Return the choice with nearly the least loss whose costs do not exceed their budgets.

    Args:
        curves: The candidates.
        lanes: The combinations of candidates that are possible.
        budgets: The maximum cost under every limit of the curves.

    Raises:
        UnreachableError: Even the cheapest options exceed a budget.
        PlanError: Each budget can be met alone, but no choice that meets all of them was found.
    """
    limits = np.asarray(budgets, dtype=float)
    if len(limits) == 1:
        return _allocate(curves, lanes, limits)
    alone = [_allocate(_priced_in(curves, index), lanes, limits, index) for index in range(len(limits))]
    best = min((choice for choice in alone if choice.within(limits)), key=lambda choice: choice.loss, default=None)
    return best or _mixed(curves, lanes, limits)


def _priced_in(curves: Sequence[Curve], limit: int) -> list[Curve]:
    """Return the curves with the costs under one limit as ``costs``."""
    return [replace(curve, costs=curve.limits[limit], limited=curve.limits) for curve in curves]


def _mixed(curves: Sequence[Curve], lanes: Sequence[Lane], limits: Floats) -> Allocation:
    """Return the best choice among those for several weighted sums of the costs.

    Raises:
        PlanError: No weights lead to a choice within all limits.
    """
    choices = []
    for weights in _weights(len(limits)):
        mixed = [replace(curve, costs=(weights / limits) @ curve.limits, limited=curve.limits) for curve in curves]
        try:
            choices.append(_allocate(mixed, lanes, limits))
        except UnreachableError:
            continue
    if not choices:
        raise PlanError(
            "no plan was found that meets the limits together, though each alone can be met: raise one of them."
        )
    return min(choices, key=lambda choice: choice.loss)


def _weights(count: int) -> Iterator[Floats]:
    """Yield weights of ``count`` limits, all positive, with the sum 1."""
    parts = _MIXTURES.get(count, count)
    for cuts in combinations(range(1, parts), count - 1):
        yield np.diff([0, *cuts, parts]) / parts


def _allocate(curves: Sequence[Curve], lanes: Sequence[Lane], limits: Floats, only: int | None = None) -> Allocation:
    """Return the best choice within the budgets for one kind of cost, the ``costs`` of the curves.

    Args:
        curves: The candidates.
        lanes: The combinations of candidates that are possible.
        limits: Budget of every limit.
        only: Position of the only limit to respect; None: all of them.

    Raises:
        UnreachableError: Even the cheapest options exceed a budget.
    """
    binding = limits if only is None else np.where(np.arange(len(limits)) == only, limits, inf)

    def fits(choice: Allocation) -> bool:
        return choice.within(binding)

    # Bounds at which only costs (high) or only losses (low) determine the choice, also between candidates.
    scale = max(curve.losses.max() for curve in curves) / min(curve.costs.min() for curve in curves)
    high, low = 1e9 * scale + 1e-275, 1e-25 * scale + 1e-300
    best = _at_price(curves, lanes, high)
    if not fits(best):
        limit = int((best.costs / limits).argmax()) if only is None else only
        raise UnreachableError(limit, float(best.costs[limit]))
    unlimited = _at_price(curves, lanes, low)
    if fits(unlimited):
        return unlimited
    for _ in range(100):
        price = (low * high) ** 0.5
        choice = _at_price(curves, lanes, price)
        if not fits(choice):
            low = price
        else:
            high = price
            if choice.loss <= best.loss:
                best = choice
        if high <= low * (1 + 1e-9) or (fits(choice) and bool((binding - choice.costs <= _REST * limits).any())):
            break
    return _spend_rest(curves, best, binding)


def _at_price(curves: Sequence[Curve], lanes: Sequence[Lane], price: float) -> Allocation:
    """Return the choice that minimises loss + price x cost."""
    choices: list[Choice] = []
    for lane in lanes:
        choices += _best_groups(curves, lane, price)
    return _total(curves, choices)


def _total(curves: Sequence[Curve], choices: Sequence[Choice]) -> Allocation:
    return Allocation(
        tuple(choices),
        loss=float(sum(curves[c.candidate].losses[c.position] for c in choices)),
        costs=np.sum([curves[c.candidate].limits[:, c.position] for c in choices], axis=0),
    )


def _best_groups(curves: Sequence[Curve], lane: Lane, price: float) -> list[Choice]:
    """Return the choices for a lane that minimise loss + price x cost.

    The lane is divided into stretches of blocks with one partition each, and each part of a stretch into segments.
    """
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
    """Return the best covers of ``start..stop`` with segments: stop -> value, last segment's start, candidate."""
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


def _spend_rest(curves: Sequence[Curve], choice: Allocation, limits: Floats) -> Allocation:
    """Replace options by better ones while the budgets allow it, each time with the largest gain per unit of cost."""
    positions = {choice.candidate: choice.position for choice in choice.choices}
    rest = limits - choice.costs
    least = 1e-12 * max(curve.costs.max() for curve in curves)

    def best_step(candidate: int) -> tuple[float, int]:
        """Return the largest gain per unit of cost for a candidate, and the position of the option with it."""
        curve, now = curves[candidate], positions[candidate]
        more = curve.limits - curve.limits[:, now, None]
        possible = np.flatnonzero((more <= rest[:, None]).all(0) & (curve.losses < curve.losses[now]))
        if not len(possible):
            return 0.0, now
        # An option may lose less and cost less under the limit that sets the price: another limit forbade it before.
        paid = np.maximum(curve.costs[possible] - curve.costs[now], least)
        rates = (curve.losses[now] - curve.losses[possible]) / paid
        step = int(rates.argmax())
        return float(rates[step]), int(possible[step])

    while True:
        (rate, position), candidate = max((best_step(candidate), candidate) for candidate in positions)
        if rate <= 0:
            return _total(curves, [Choice(*item) for item in positions.items()])
        rest = rest - (curves[candidate].limits[:, position] - curves[candidate].limits[:, positions[candidate]])
        positions[candidate] = position
