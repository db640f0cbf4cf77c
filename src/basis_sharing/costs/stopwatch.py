"""Times of short actions on a device, measured in rounds, with a check of whether the machine is idle enough.

A shared machine changes its speed by a third from one minute to the next, with no program of its own to blame. So every
time is taken beside that of a reference, a product of about the same number of rows, and is that quotient times what
the reference took when it was first measured: times of different minutes can be compared.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch

from basis_sharing.run.devices import synchronize

Key = TypeVar("Key")
Action = Callable[[], object]

_ROUNDS, _MOST_ROUNDS = 3, 8
_SECONDS_PER_ROUND = 0.008
_LONGEST = 120  # seconds after which what is not steady is not measured again
_FEWEST, _MOST = 3, 64  # runs in a round
_IN_A_GRAPH = 20  # runs in one CUDA graph
AGREEMENT = 0.1
"""Largest relative difference of the two shortest rounds of a steady measurement."""
_ROOM = 0.3  # of a processor, that other programs may take from the threads of this one
_SHORTEST_CHECK = 0.25  # seconds; the system counts processor time in hundredths of a second


@dataclass(frozen=True)
class Measured:
    """A measured time.

    Attributes:
        seconds: The time of one run: the mean of two rounds.
        spread: Relative difference of these two rounds.
        steady: Whether they agree, and the machine was idle enough during both.
        thorough: Whether it was measured in many rounds.
    """

    seconds: float
    spread: float = 0.0
    steady: bool = True
    thorough: bool = False


@dataclass(frozen=True)
class Reference:
    """An action in whose time others are measured.

    Attributes:
        action: The action.
        seconds: The time it is taken to have.
    """

    action: Action
    seconds: float


class Crowding:
    """How much of the machine other programs take, from now on."""

    def __init__(self) -> None:
        self._start, self._others = time.perf_counter(), _others()

    def crowded(self) -> bool:
        """Return whether other programs left fewer processors than this one has threads; False for short times."""
        elapsed = time.perf_counter() - self._start
        if elapsed < _SHORTEST_CHECK:
            return False
        left = (psutil.cpu_count() or 1) - (_others() - self._others) / elapsed
        return left < torch.get_num_threads() - _ROOM


def _others() -> float:
    """Return the processor seconds that all other programs have used so far."""
    used = psutil.cpu_times()
    own = os.times()
    return used.user + used.system + getattr(used, "nice", 0.0) - (own.user + own.system)


@torch.inference_mode()
def measure(
    actions: Mapping[Key, Action],
    device: torch.device,
    ran: Callable[[int], None] = lambda count: None,
    references: Mapping[Key, Reference] | None = None,
    *,
    thorough: bool = False,
) -> dict[Key, Measured]:
    """Return the time of every action, in seconds.

    All actions are measured in turns, in at least three rounds; those whose rounds do not agree, or were measured while
    other programs took the processors, are measured in up to five more, for up to two minutes in all.

    Args:
        actions: The actions; on a CUDA device each is captured in a graph.
        device: The device they run on, with the threads that PyTorch has now.
        ran: Called after every action with the number of actions that are still to be measured.
        references: The reference of every action; None: there are none.
        thorough: Whether it takes eight rounds in any case.
    """
    fewest = _MOST_ROUNDS if thorough else _ROUNDS
    timers = {key: _timer(action, device) for key, action in actions.items()}
    beside = {reference: _Beside(reference, device) for reference in dict.fromkeys((references or {}).values())}
    rounds: dict[Key, list[tuple[float, bool]]] = {key: [] for key in actions}
    pending, begin = list(actions), time.perf_counter()
    for number in range(_MOST_ROUNDS):
        crowding = Crowding()
        found = {}
        for position, key in enumerate(pending):
            found[key] = timers[key]() if references is None else beside[references[key]].time_of(timers[key])
            ran(len(pending) * max(fewest - number, 1) - position - 1)
        quiet = device.type != "cpu" or not crowding.crowded()
        for key, seconds in found.items():
            rounds[key].append((seconds, quiet))
        if number + 1 >= fewest:
            pending = [key for key in pending if not summary(rounds[key], middle=references is not None).steady]
            if not pending or time.perf_counter() - begin > _LONGEST:
                break
    times = {key: summary(of_key, middle=references is not None) for key, of_key in rounds.items()}
    return {key: replace(measured, thorough=thorough) for key, measured in times.items()}


def summary(rounds: Sequence[tuple[float, bool]], *, middle: bool) -> Measured:
    """Return the time from rounds: the mean of two of them.

    Args:
        rounds: Seconds of every round, and whether the machine was quiet in it.
        middle: Whether the two are the median and the round that is closest to it, as for quotients, which err to both
            sides; else they are the shortest ones.
    """
    quiet = sorted(seconds for seconds, still in rounds if still)
    among = quiet if len(quiet) > 1 else sorted(seconds for seconds, _ in rounds)
    pairs = list(itertools.pairwise(among))
    if middle:
        near = pairs[max(0, len(among) // 2 - 1) : len(among) // 2 + 1]
        low, high = min(near, key=lambda pair: pair[1] - pair[0])
    else:
        low, high = pairs[0]
    spread = (high - low) / low
    return Measured((low + high) / 2, spread, len(quiet) > 1 and spread <= AGREEMENT)


class _Beside:
    """Times actions beside a reference, which runs before and after each of them.

    Args:
        reference: The reference.
        device: The device.
    """

    def __init__(self, reference: Reference, device: torch.device) -> None:
        self._timer, self._seconds = _timer(reference.action, device), reference.seconds

    def time_of(self, timer: Callable[[], float]) -> float:
        """Return the time of an action, in seconds, as long as the reference takes its own."""
        before, seconds, after = self._timer(), timer(), self._timer()
        return seconds / ((before + after) / 2) * self._seconds


def reference_timer(reference: Reference, device: torch.device) -> Callable[[], float]:
    """Return a function that measures the reference now, in seconds."""
    return _timer(reference.action, device)


def _timer(action: Action, device: torch.device) -> Callable[[], float]:
    """Return a function that measures one round of an action: seconds of a run, the lower quartile of several."""
    if device.type == "cuda":
        return _graph_timer(action)
    action()

    def once() -> float:
        start = time.perf_counter()
        action()
        synchronize(device)
        return time.perf_counter() - start

    def timer() -> float:
        seconds, deadline = [once()], time.perf_counter() + _SECONDS_PER_ROUND
        while len(seconds) < _FEWEST or (time.perf_counter() < deadline and len(seconds) < _MOST):
            seconds.append(once())
        return sorted(seconds)[len(seconds) // 4]

    return timer


def _graph_timer(action: Action) -> Callable[[], float]:
    """Return a function that measures one round of an action by replaying a CUDA graph of several runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        action()  # libraries allocate their workspaces in the first run
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_IN_A_GRAPH):
            action()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timer() -> float:
        seconds: list[float] = []
        for _ in range(_FEWEST):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / _IN_A_GRAPH)
        return sorted(seconds)[len(seconds) // 4]

    return timer
