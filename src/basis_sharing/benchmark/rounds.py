"""The workloads of a benchmark, each timed on all models in turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from basis_sharing.benchmark.compiling import compiled_models
from basis_sharing.benchmark.turns import Timed, paired_speed, spread, take_turns, uncertainty
from basis_sharing.benchmark.workloads import Decode, FirstToken, Prefill
from basis_sharing.results.benchmark import BenchmarkSettings, Execution, Timing, Work, Workload
from basis_sharing.run.progress import Progress, ProgressCallback

_MOST = 4  # largest multiple of the repeats, if the precision is not reached


@dataclass(frozen=True)
class _Round:
    """One workload, on all models."""

    workload: Workload
    execution: Execution
    batch: int

    def contestants(self, models: Sequence[Any], prompts: torch.Tensor, new_tokens: int) -> list[Timed]:
        ids = prompts[: self.batch]
        if self.workload == "first token":
            return [FirstToken(model, ids) for model in models]
        forwards = [torch.compile(model.forward) if self.execution == "compiled" else None for model in models]
        if self.workload == "prefill":
            return [Prefill(model, ids, forward) for model, forward in zip(models, forwards, strict=True)]
        return [Decode(model, ids, new_tokens, forward) for model, forward in zip(models, forwards, strict=True)]

    def ideal_speed(self, first: Work, other: Work) -> float:
        if self.workload == "decode":
            return first.weight_bytes_per_step / other.weight_bytes_per_step
        if self.workload == "prefill":
            return first.prefill_multiply_adds / other.prefill_multiply_adds
        return first.first_token_multiply_adds / other.first_token_multiply_adds


def time_rounds(
    models: Sequence[Any],
    works: Sequence[Work],
    prompts: torch.Tensor,
    settings: BenchmarkSettings,
    progress: ProgressCallback,
) -> list[tuple[Timing, ...]]:
    """Return the timings of all workloads on all models.

    Args:
        models: The models, on the device of the benchmark; the others are compared with the first.
        works: The work of each model.
        prompts: Tokens of the prompts, shape ``[largest batch, prompt tokens]``.
        settings: The settings of the benchmark.
        progress: Receives one event per repeat.

    Returns:
        For every model the timings of all workloads, in seconds.

    Raises:
        ModelError: A model cannot be compiled.
    """
    rounds = _rounds(settings)
    most = settings.repeats if settings.precision is None else _MOST * settings.repeats
    done, total = 0, len(rounds) * (1 + settings.repeats)

    def repeated() -> None:
        nonlocal done
        done += 1
        progress(Progress("measuring speed", done, max(done, total), "repeats"))

    timings: list[list[Timing]] = [[] for _ in models]
    for round_ in rounds:
        turns = settings.new_tokens if round_.workload == "decode" else None

        def measure(round_: _Round = round_, turns: int | None = turns) -> list[tuple[float, ...]]:
            contestants = round_.contestants(models, prompts, settings.new_tokens)
            wanted = settings.precision or 0.0
            return take_turns(contestants, settings.repeats, turns, most=most, precision=wanted, repeated=repeated)

        if round_.execution == "compiled":
            with compiled_models(len(models)):
                seconds = measure()
        else:
            seconds = measure()
        total += len(seconds[0]) - settings.repeats
        for own, mine, work in zip(timings, seconds, works, strict=True):
            own.append(_timing(round_, seconds[0], mine, round_.ideal_speed(works[0], work)))
    return [tuple(own) for own in timings]


def _rounds(settings: BenchmarkSettings) -> list[_Round]:
    rounds = [_Round("prefill", "eager", 1), _Round("first token", "eager", 1)]
    rounds += [_Round("decode", "eager", batch) for batch in settings.batch_sizes]
    if settings.compiled:
        rounds.append(_Round("prefill", "compiled", 1))
        rounds += [_Round("decode", "compiled", batch) for batch in settings.batch_sizes]
    return rounds


def _timing(round_: _Round, first: tuple[float, ...], mine: tuple[float, ...], ideal_speed: float) -> Timing:
    """Return one model's timing of a workload; ``first`` and ``mine`` are seconds per repeat."""
    return Timing(
        workload=round_.workload,
        execution=round_.execution,
        batch=round_.batch,
        seconds=mine,
        time=spread(mine),
        speed=paired_speed(first, mine),
        ideal_speed=ideal_speed,
        uncertainty=None if mine is first or len(mine) == 1 else uncertainty(first, mine),
    )
