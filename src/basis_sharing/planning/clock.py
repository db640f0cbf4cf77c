"""The clock of a run: how long plans take on the machine that the model is made for, and limits on that time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from basis_sharing.costs.products import Operation
from basis_sharing.costs.time import Phase, Time, Workload
from basis_sharing.costs.time_table import TimedOn, TimeTable
from basis_sharing.errors import RecipeError
from basis_sharing.models.family import Decoder
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.planning.model_times import time_of_model
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import Space
from basis_sharing.plans.plan import Plan, PredictedSpeed, structure_of
from basis_sharing.recipe.speed import Speed
from basis_sharing.recipe.target import Target
from basis_sharing.run.machine import choose
from basis_sharing.run.run import Run

_TOKENS_ON_A_CPU, _TOKENS = 256, 2048
_CHANGE = 0.02  # of the longest operation
_CORRECTIONS = 12  # plans that are made anew after the times of the one before were measured thoroughly


def check_machine(speed: Speed) -> None:
    """Make sure that times can be measured for the device a model is made for, or are in a file.

    Raises:
        RecipeError: The device is not here and no file is given, or the file cannot be read.
    """
    if _device(speed) is None:
        _elsewhere(speed)


def _device(speed: Speed) -> torch.device | None:
    """Return the device that a model is made for; None: it is not here."""
    try:
        return choose(speed.runs_on)
    except RecipeError:
        return None


def _elsewhere(speed: Speed) -> TimeTable:
    """Return the table of a device that is not here.

    Raises:
        RecipeError: No file is given, or it cannot be read or is for another device.
    """
    kind = speed.runs_on
    if speed.times is None:
        raise RecipeError(
            f"--for {kind}: this machine has no {kind} to measure times on: give --times FILE, which `basis-sharing "
            f"plan MODEL --times FILE` writes where there is one, or leave out --for."
        )
    table = TimeTable.elsewhere(speed.times)
    if table.machine.device != kind:
        raise RecipeError(f"the times in {speed.times} were measured on {table.machine}, not with --for {kind}.")
    return table


@dataclass(frozen=True)
class TimeLimit:
    """A limit on the time of a forward pass.

    Attributes:
        cost: The time.
        seconds: The limit for the whole model.
        name: The limit as the user gave it.
        as_speed: Whether it was given as a multiple of the original's speed.
    """

    cost: Time
    seconds: float
    name: str
    as_speed: bool

    def budget(self, model: Any, decoder: Decoder) -> float:
        """Return the seconds that the compressible projections may take."""
        return self.cost.budget(self.seconds, model, decoder)

    def best(self, projections: float, model: Any, decoder: Decoder) -> str:
        """Return what a time of the projections means for the whole model, as the limit was given."""
        seconds = projections + self.cost.outside(model, decoder)
        # Rounded to the side that can be met.
        return f"{self.cost.original / seconds - 0.005:.2f}" if self.as_speed else f"{1000 * seconds + 0.0005:.3f}ms"


class Clock:
    """The times of a model's plans.

    Args:
        table: Measured times.
        workloads: The forward passes.
        run: The run.

    Attributes:
        products: The time of the projections in every forward pass; that of the whole model is not known.
    """

    def __init__(self, table: TimeTable, workloads: Sequence[Workload], run: Run) -> None:
        self._table, self._run = table, run
        self.products = tuple(Time(table, workload) for workload in workloads)

    @classmethod
    def of(cls, speed: Speed, run: Run) -> "Clock":
        """Return the clock of a run's model on the machine that it is made for.

        Raises:
            RecipeError: That device is not here and no file with its times is given, or the file cannot be read.
        """
        device = _device(speed)
        if device is None:
            table = _elsewhere(speed)
        else:
            machine = TimedOn.here(device, run.model.dtype, memory_bytes(run.model))
            table = TimeTable.opened(machine, device, speed.times)
        # Processes may have different files.
        table = replace(table, times=run.processes.given_by(0, table.times))
        table.progress, table.processes = run.progress, run.processes
        tokens = speed.tokens or (_TOKENS_ON_A_CPU if table.machine.device == "cpu" else _TOKENS)
        tokens = min(tokens, _longest(run.model))
        phases: tuple[Phase, ...] = ("prefill", "decode")
        return cls(table, [Workload(phase, tokens, speed.batch or 1) for phase in phases], run)

    @property
    def notes(self) -> Sequence[str]:
        """Notes on the measurements, one sentence each."""
        return self._table.notes

    @cached_property
    def times(self) -> tuple[Time, ...]:
        """The time of every forward pass, with that of the whole original model, which is measured if needed."""
        run = self._run
        structure = f"{run.model.config.model_type} {structure_of(run.whole)}"
        times = []
        for cost in self.products:
            workload = cost.workload

            def measure(device: torch.device, workload: Workload = workload) -> Any:
                reference = self._table.reference(workload.rows)
                return time_of_model(run.model, run.whole, workload, device, run.progress, reference)

            whole = self._table.of_model(f"{structure}: {workload}", measure)
            times.append(Time(self._table, workload, whole))
        return tuple(times)

    def limits(self, target: Target, speed: Speed) -> list[TimeLimit]:
        """Return the limits on time that a target has, in all phases that the settings name."""
        limits = []
        asked = [time for time in self.times if speed.phase in (None, "both", time.workload.phase)]
        for time in asked if target.limits_time else ():
            if target.min_speedup is not None:
                name = f"--min-speedup {target.min_speedup:g} ({time.workload})"
                limits.append(TimeLimit(time, time.original / target.min_speedup, name, as_speed=True))
            if target.max_latency is not None:
                name = f"--max-latency {1000 * target.max_latency:g}ms ({time.workload})"
                limits.append(TimeLimit(time, target.max_latency, name, as_speed=False))
        return limits

    def measure(self, space: Space, times: Sequence[Time]) -> None:
        """Measure the times of all options of a space that are not in the table."""
        operations = (
            operation
            for time in times
            for scope in space.scopes
            for candidate in scope.candidates
            for operation in time.needed(candidate.scope, _priced_together(candidate.options))
        )
        self._table.measure(operations)

    def speeds(self, plan: Plan) -> tuple[PredictedSpeed, ...]:
        """Return the predicted speed of a plan in every phase; only the products of the plan are measured."""
        decoder = self._run.decoder
        self._table.measure(self._operations(plan))
        return tuple(
            PredictedSpeed(
                phase=time.workload.phase,
                tokens=time.workload.tokens,
                batch=time.workload.batch,
                original=time.original,
                seconds=time.original - time.dense(decoder.parts) + plan.cost(decoder, time),
            )
            for time in self.times
        )

    def _operations(self, plan: Plan) -> Iterator[Operation]:
        """Yield the operations of a plan and of the original."""
        decoder = self._run.decoder
        known = decoder.by_name
        for time in self.products:
            yield from time.needed(decoder.parts, ())
            for entry in plan.entries:
                yield from time.needed([known[name] for name in entry.members], (entry,))

    def corrected(self, plan: Plan) -> bool:
        """Measure the operations of a plan thoroughly; return whether a time has changed by more than 2 %."""
        return self._table.measure_again(self._operations(plan)) > _CHANGE

    def settled(self, planner: Planner, make: Callable[[Planner], Plan]) -> Plan:
        """Return a plan within limits on time, made anew until the times of what it chose stay when measured again."""
        plan = make(planner)
        for _ in range(_CORRECTIONS):
            if not self.corrected(plan):
                break
            plan = make(planner.with_new_prices())
        return plan

    def told(self, plan: Plan) -> Plan:
        """Return a plan whose prediction has the speeds, from operations that are measured thoroughly."""
        assert plan.prediction is not None
        self.corrected(plan)
        return plan.model_copy(update={"prediction": plan.prediction.model_copy(update={"speeds": self.speeds(plan)})})


def _priced_together(options: Sequence[Any]) -> Sequence[Any]:
    """Return options as one with arrays of sizes, if their kind supports it."""
    return options if not len(options) or not hasattr(options, "stored") else [options]


def _longest(model: Any) -> int:
    """Return the longest prompt that a model reads, in tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return _TOKENS if limit is None else max(1, int(limit) // 2)
