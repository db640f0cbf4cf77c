"""Measuring several things fairly on one busy machine: they take turns, and are compared turn by turn."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from basis_sharing.results.benchmark import Spread

_SECONDS_PER_REPEAT = 1.5
_FEWEST_TURNS, _MOST_TURNS = 5, 32


class Timed(Protocol):
    """Something whose time is measured."""

    def prepare(self) -> None:
        """Get ready for the turns of one repeat; not timed."""

    def turn(self) -> None:
        """Do the work once and wait until it is done."""


def take_turns(
    contestants: Sequence[Timed],
    repeats: int,
    turns: int | None = None,
    *,
    most: int | None = None,
    precision: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    repeated: Callable[[], None] = lambda: None,
) -> list[tuple[float, ...]]:
    """Time several contestants that alternate after every single turn.

    A whole repeat comes first as a warm-up. Within a repeat the contestants go round in one order, in the next repeat
    in the opposite one, so that nobody always follows the same neighbour; whatever else the machine does in the
    meantime hits all of them alike.

    Args:
        contestants: What is timed.
        repeats: Least number of repeats that count.
        turns: Turns of each contestant in a repeat; None: as many as fill about 1.5 seconds each, 5 to 32.
        most: Go on after ``repeats`` until all speeds are known to ``precision``, or there are so many.
        precision: Largest :func:`uncertainty` of the others' speeds against the first, a fraction.
        clock: Returns the time in seconds.
        repeated: Called after every repeat, the warm-up included.

    Returns:
        For each contestant the seconds of one turn, one number per repeat: the median of the turns in it.
    """
    warm_up = _repeat(contestants, turns or _FEWEST_TURNS, clock, backwards=False)
    repeated()
    if turns is None:
        # The first turn of the warm-up pays for what happens only once.
        slowest = max(min(seconds[1:]) for seconds in warm_up)
        turns = min(_MOST_TURNS, max(_FEWEST_TURNS, math.ceil(_SECONDS_PER_REPEAT / max(slowest, 1e-9))))
    medians: list[list[float]] = [[] for _ in contestants]
    for repeat in range(max(repeats, most or 0)):
        if repeat >= repeats and all(uncertainty(medians[0], other) <= precision for other in medians[1:]):
            break
        times = _repeat(contestants, turns, clock, backwards=repeat % 2 == 1)
        for column, seconds in zip(medians, times, strict=True):
            column.append(statistics.median(seconds))
        repeated()
    return [tuple(column) for column in medians]


def _repeat(
    contestants: Sequence[Timed], turns: int, clock: Callable[[], float], *, backwards: bool
) -> list[list[float]]:
    order = list(enumerate(contestants))
    if backwards:
        order.reverse()
    for contestant in contestants:
        contestant.prepare()
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(turns):
        for index, contestant in order:
            start = clock()
            contestant.turn()
            times[index].append(clock() - start)
    return times


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles."""
    if len(values) == 1:
        return Spread(median=values[0], lower=values[0], upper=values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, lower=lower, upper=upper)


def paired_speed(first: Sequence[float], other: Sequence[float]) -> Spread:
    """Return how many times as fast ``other`` is as ``first``, from the quotients of their times repeat by repeat."""
    return spread([reference / seconds for reference, seconds in zip(first, other, strict=True)])


def uncertainty(first: Sequence[float], other: Sequence[float]) -> float:
    """Return twice the standard error of a paired speed as a fraction of it; infinite for a single repeat.

    The standard error of a median is 1.253 standard deviations over the square root of the count; the standard
    deviation is taken from the quartiles (1.349 apart), which a few disturbed repeats do not move.
    """
    if len(first) < 2:
        return math.inf
    speed = paired_speed(first, other)
    return 2 * 1.253 / 1.349 * (speed.upper - speed.lower) / speed.median / math.sqrt(len(first))
