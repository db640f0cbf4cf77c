"""The workloads of a benchmark, each timed on all models in turns."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from basis_sharing.benchmark.turns import Timed, Times, paired_speed, spread, take_turns, uncertainty
from basis_sharing.results.benchmark import BenchmarkSettings, Execution, Timing, Work, Workload
from basis_sharing.run.progress import Progress, ProgressCallback

_MOST = 4  # largest multiple of the repeats, if the precision is not reached


@dataclass(frozen=True)
class Round:
    """One workload, on all models.

    Attributes:
        workload: What is timed.
        execution: How the models run.
        batch: Number of sequences.
        turns: Turns of each model in one repeat; None: as many as fill some time.
    """

    workload: Workload
    execution: Execution
    batch: int
    turns: int | None = None

    def ideal_speed(self, first: Work | None, other: Work | None) -> float | None:
        """Return the speed of ``other`` as a multiple of that of ``first``, if work alone took time.

        None if the work is not known.
        """
        if first is None or other is None:
            return None
        if self.workload == "decode":
            return first.weight_bytes_per_step / other.weight_bytes_per_step
        if self.workload == "prefill":
            return first.prefill_multiply_adds / other.prefill_multiply_adds
        return first.first_token_multiply_adds / other.first_token_multiply_adds


class Engine(Protocol):
    """What runs the models of a benchmark."""

    def rounds(self) -> list[Round]:
        """Return the rounds, in their order."""

    def contestants(self, round_: Round) -> AbstractContextManager[list[Timed]]:
        """Return a context with the work of one round, for each model; it is timed within the context."""


def time_rounds(
    engine: Engine, works: Sequence[Work | None], settings: BenchmarkSettings, progress: ProgressCallback
) -> list[tuple[Timing, ...]]:
    """Return the timings of all workloads on all models.

    Args:
        engine: What runs the models; the others are compared with the first.
        works: The work of each model; None where it is not known.
        settings: The settings of the benchmark.
        progress: Receives one event per repeat.

    Returns:
        For every model the timings of all workloads, in seconds.

    Raises:
        ModelError: A model cannot be compiled, or the engine cannot run it.
    """
    rounds = engine.rounds()
    most = settings.repeats if settings.precision is None else _MOST * settings.repeats
    done, total = 0, len(rounds) * (1 + settings.repeats)

    def repeated() -> None:
        nonlocal done
        done += 1
        progress(Progress("measuring speed", done, max(done, total), "repeats"))

    timings: list[list[Timing]] = [[] for _ in works]
    for round_ in rounds:
        with engine.contestants(round_) as contestants:
            times = take_turns(
                contestants,
                settings.repeats,
                round_.turns,
                most=most,
                precision=settings.precision or 0.0,
                repeated=repeated,
            )
        total += len(times[0].seconds) - settings.repeats
        for own, mine, work in zip(timings, times, works, strict=True):
            own.append(_timing(round_, times[0], mine, round_.ideal_speed(works[0], work)))
    return [tuple(own) for own in timings]


def _timing(round_: Round, first: Times, mine: Times, ideal_speed: float | None) -> Timing:
    """Return one model's timing of a workload."""
    known = mine is not first and len(mine.seconds) > 1
    return Timing(
        workload=round_.workload,
        execution=round_.execution,
        batch=round_.batch,
        seconds=mine.seconds,
        time=spread(mine.seconds),
        speed=paired_speed(first.seconds, mine.seconds),
        ideal_speed=ideal_speed,
        uncertainty=uncertainty(first.seconds, mine.seconds) if known else None,
        warm_up=mine.warm_up,
    )
