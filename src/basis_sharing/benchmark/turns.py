"""Timing of several contestants that alternate, so that they can be compared on a busy machine."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from basis_sharing.results.benchmark import Spread

_SECONDS_PER_REPEAT = 1.5
_FEWEST_TURNS, _MOST_TURNS = 5, 32


class Timed(Protocol):
    """Work whose time is measured."""

    def prepare(self) -> None:
        """Prepare the turns of one repeat; not timed."""

    def turn(self) -> float:
        """Do the work once, wait until it is done, and return the seconds it took."""


@dataclass(frozen=True)
class Times:
    """The times of one contestant.

    Attributes:
        seconds: Seconds of one turn, one number per repeat: the median of the turns in it.
        warm_up: Seconds of the whole first repeat, which does not count: compiling and other one-time costs,
            preparation, and its turns.
    """

    seconds: tuple[float, ...]
    warm_up: float


def take_turns(
    contestants: Sequence[Timed],
    repeats: int,
    turns: int | None = None,
    *,
    most: int | None = None,
    precision: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    repeated: Callable[[], None] = lambda: None,
) -> list[Times]:
    """Time several contestants that alternate after every single turn.

    The first repeat is a warm-up. The order of the contestants is reversed in every other repeat, so that none always
    follows the same one. Other load on the machine affects all of them alike.

    Args:
        contestants: The work to time.
        repeats: Smallest number of repeats that count.
        turns: Turns of each contestant in a repeat; None: as many as fill about 1.5 seconds each, 5 to 32.
        most: Repeat more than ``repeats`` times, at most so often, until all speeds have the ``precision``; None: do
            not.
        precision: Largest :func:`uncertainty` of the others' speeds against the first, a fraction.
        clock: Returns the time in seconds; only the warm-up is timed by it.
        repeated: Called after every repeat, the warm-up included.

    Returns:
        The times of each contestant.
    """
    first, warm_up = _repeat(contestants, turns or _FEWEST_TURNS, clock, backwards=False)
    repeated()
    if turns is None:
        # The first turn of the warm-up includes one-time costs.
        slowest = max(min(seconds[1:]) for seconds in first)
        turns = min(_MOST_TURNS, max(_FEWEST_TURNS, math.ceil(_SECONDS_PER_REPEAT / max(slowest, 1e-9))))
    medians: list[list[float]] = [[] for _ in contestants]
    for repeat in range(max(repeats, most or 0)):
        if repeat >= repeats and all(uncertainty(medians[0], other) <= precision for other in medians[1:]):
            break
        times, _ = _repeat(contestants, turns, clock, backwards=repeat % 2 == 1)
        for column, seconds in zip(medians, times, strict=True):
            column.append(statistics.median(seconds))
        repeated()
    return [Times(tuple(column), seconds) for column, seconds in zip(medians, warm_up, strict=True)]


def _repeat(
    contestants: Sequence[Timed], turns: int, clock: Callable[[], float], *, backwards: bool
) -> tuple[list[list[float]], list[float]]:
    """Return for each contestant the seconds of every turn, and all the time it took, its preparation included."""
    order = list(enumerate(contestants))
    if backwards:
        order.reverse()
    turned: list[list[float]] = [[] for _ in contestants]
    passed = [0.0 for _ in contestants]
    for turn in range(-1, turns):
        for index, contestant in order:
            start = clock()
            if turn < 0:
                contestant.prepare()
            else:
                turned[index].append(contestant.turn())
            passed[index] += clock() - start
    return turned, passed


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of values."""
    if len(values) == 1:
        return Spread(median=values[0], lower=values[0], upper=values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, lower=lower, upper=upper)


def paired_speed(first: Sequence[float], other: Sequence[float]) -> Spread:
    """Return the speed of ``other`` as a multiple of that of ``first``, from quotients of their times per repeat."""
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
