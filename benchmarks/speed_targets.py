"""Speed as a target: predicted against measured time, and planning for time against planning for parameters.

``python benchmarks/speed_targets.py smollm2 [--targets 1.1,1.3] [--phase decode] [--windows N] [--length N]``
``python benchmarks/speed_targets.py wide [--blocks N]``
``python benchmarks/speed_targets.py picture``

The first two may be run in pieces: targets that are in the result already are left out. ``smollm2`` plans in fp32,
carries every plan out with `compress` (without refit), and measures its time and perplexity, beside the plan for
parameters alone with the same predicted speed; statistics are kept in ``--work``. ``wide`` has random weights in the
widths of a 1.5 B model, with made up losses and inputs in order: only times are compared. Every plan takes turns with
the original, in one process; nothing else may run beside it.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from basis_sharing import compress
from basis_sharing.benchmark.turns import paired_speed, take_turns
from basis_sharing.benchmark.workloads import Decode, Prefill
from basis_sharing.cli.console import progress_bars
from basis_sharing.costs.base import shapes_of
from basis_sharing.costs.parameters import Parameters
from basis_sharing.costs.time import Time
from basis_sharing.errors import PlanError
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.models.decoder import describe
from basis_sharing.planning.clock import Clock
from basis_sharing.planning.multiples import multiples_for
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import arranged
from basis_sharing.planning.stage import known_curves, planner_for
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.run.machine import Machine
from basis_sharing.run.run import Run
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import encode_pivots
from basis_sharing.treatments.base import Candidate, Outcome, install
from basis_sharing.treatments.factors.options import worthwhile
from basis_sharing.weightings.base import WEIGHTINGS
from basis_sharing.weightings.stage import Collect
from common import CALIBRATION, ROOT, TEST_TEXT, calibration_on, evaluation_on, machine, read, real_model, save, smollm2

NAME = "speed_targets"
TARGETS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.5, 1.6)
REPEATS, STEPS = 5, 16
WIDE = {
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def measured_speed(dense: Any, compressed: Any, time: Time) -> dict[str, float]:
    """Return the seconds of two models that take turns, and the speed of the second against the first."""
    workload = time.workload
    rows = workload.batch if workload.phase == "decode" else 1
    ids = torch.randint(dense.config.vocab_size, (rows, workload.tokens), generator=torch.Generator().manual_seed(0))
    if workload.phase == "prefill":
        runs: list[Any] = [Prefill(model, ids) for model in (dense, compressed)]
    else:
        runs = [Decode(model, ids, STEPS) for model in (dense, compressed)]
    turns = STEPS if workload.phase == "decode" else 3
    first, second = (times.seconds for times in take_turns(runs, REPEATS, turns))
    return {"dense": min(first), "plan": min(second), "speed": paired_speed(first, second).median}


def random_factors(model: Any, plan: Plan) -> Any:
    """Return a copy of a model with random factors of a plan's ranks."""
    changed = copy.deepcopy(model)
    known = describe(model).by_name
    for entry in plan.entries:
        assert isinstance(entry, Factors)
        d_in, rank = known[entry.owner].d_in, entry.rank
        pivots = encode_pivots(torch.arange(rank), d_in)
        tensors = {f"{entry.owner}.basis.weight": torch.randn(rank, d_in - rank) / d_in**0.5}
        for name in entry.members:
            tensors[f"{name}.weight"] = torch.randn(known[name].d_out, rank) / rank**0.5
        whole = Factors(members=entry.members, rank=rank, form="pivoted", pivots=pivots)
        install(changed, Outcome(whole, tensors, 0.0, 0.0))
    return changed


def limits_for(speed: float, times: list[Time], run: Run) -> list[tuple[Time, float]]:
    """Return the budgets of the projections for a speed."""
    return [(time, time.budget(time.original / speed, run.model, run.decoder)) for time in times]


def corrected(planner: Planner, clock: Clock, limits: list[tuple[Time, float]]) -> Plan:
    """Return the plan within limits, as `compress` makes it."""
    return clock.settled(planner, lambda planner: planner.within(limits))


def sized(planner: Planner, clock: Clock, phase: str, speed: float) -> Plan:
    """Return the plan for parameters alone, of the largest size that has a predicted speed."""
    low, high = 0.0, 0.95
    best = planner.at_ratio(high)
    while high - low > 2e-3:
        ratio = (low + high) / 2
        plan = planner.at_ratio(ratio)
        if next(found for found in clock.speeds(plan) if found.phase == phase).speed >= speed:
            high, best = ratio, plan
        else:
            low = ratio
    clock.corrected(best)
    return best


def compared(plan: Plan, clock: Clock, times: list[Time], dense: Any, compressed: Any) -> dict[str, Any]:
    """Return predicted and measured times of a plan by phase."""
    predicted = {found.phase: found for found in clock.speeds(plan)}
    row: dict[str, Any] = {"ratio": plan.ratio, "loss": None if plan.prediction is None else plan.prediction.loss}
    for time in times:
        found = measured_speed(dense, compressed, time)
        expected = predicted[time.workload.phase]
        error = expected.seconds / expected.original * found["speed"] - 1
        row[time.workload.phase] = {"predicted": expected.speed, **found, "error": error}
        print(f"  {time.workload.phase}: predicted {expected.speed:.3f}, measured {found['speed']:.3f}", flush=True)
    return row


@contextmanager
def wide(blocks: int) -> Iterator[Run]:
    """Yield a model with random weights in the widths of a 1.5 B model."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, **WIDE)).eval()
    torch.set_default_dtype(torch.float32)
    decoder = describe(model)
    yield Run(model, None, decoder, decoder, machine=Machine(torch.device("cpu")))


def made_up(run: Run, multiples: Callable[[Any], int]) -> Planner:
    """Return the planner of losses that fall with the square of the rank that is left out."""
    candidates = []
    for p in run.decoder.projections:
        options = worthwhile((p,), "pivoted", multiples((p,)))
        most = min(shapes_of((p,))[0])
        candidates.append(Candidate((p,), options, 1e-2 * p.d_out**0.5 * (1 - options.ranks / most) ** 2))
    return Planner(run.decoder, arranged(run.decoder, candidates), method="auto", gradients=True)


def run_wide(options: argparse.Namespace, rows: dict[str, Any]) -> None:
    with wide(options.blocks) as run:
        clock, settings = Clock.of(options.recipe, run), options.recipe
        multiples = multiples_for(settings, run.decoder, clock.products)
        planner = made_up(run, multiples.bounded())
        times = [time for time in clock.times if options.phase in ("both", time.workload.phase)]
        clock.measure(planner.space, times)
        for target in options.targets:
            try:
                plan = corrected(planner, clock, limits_for(target, times, run))
            except PlanError as error:
                print(error)
                break
            print(f"{target} x, multiples of {multiples}", flush=True)
            row = compared(plan, clock, times, run.model, random_factors(run.model, plan))
            rows[f"{target}"] = {**row, "multiples": str(multiples)}


def run_smollm2(options: argparse.Namespace, rows: dict[str, Any]) -> None:
    with progress_bars() as progress, real_model(work=options.work, progress=progress) as run:
        clock, settings = Clock.of(options.recipe, run), options.recipe
        text = calibration_on(run, CALIBRATION, options.windows)
        collect = Collect(WEIGHTINGS["loss"], text)
        collect.run(run)
        multiples = multiples_for(settings, run.decoder, clock.products)
        times = [time for time in clock.times if options.phase in ("both", time.workload.phase)]
        with known_curves(run, collect.weighting, text) as curves:
            planner = planner_for(settings, Parameters(4), run, collect, curves, multiples.bounded())
        clock.measure(planner.space, times)
        evaluated = evaluation_on(run, TEST_TEXT, options.evaluation_windows)
        for target in options.targets:
            plans = {"time": corrected(planner, clock, limits_for(target, times, run))}
            if not options.only_time:
                plans["parameters"] = sized(planner, clock, times[0].workload.phase, target)
            row: dict[str, Any] = {"multiples": str(multiples)}
            for name, plan in plans.items():
                print(f"{target} x, planned for {name}", flush=True)
                compressed = carried_out(plan, options)
                row[name] = compared(plan, clock, times, run.model, compressed)
                row[name]["perplexity"] = measure(compressed, evaluated).perplexity
            rows[f"{target}"] = row


def carried_out(plan: Plan, options: argparse.Namespace) -> Any:
    """Return SmolLM2 compressed by a plan, as `compress` does it, from the kept statistics."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        plan.write(file)
        model, _ = compress(
            str(smollm2()),
            plan=file,
            calibration=CALIBRATION,
            windows=options.windows,
            length=2048,
            dtype="float32",
            calibration_dtype="float32",
            refit="never",
            work=options.work,
        )
    return model


def picture() -> None:
    """Draw predicted against measured speed, and perplexity against measured speed of both planners."""
    from matplotlib.figure import Figure

    result = read(NAME)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    times, quality = figure.subplots(1, 2)
    for key, rows in result.items():
        if key == "machine":
            continue
        for phase, marker in (("prefill", "o"), ("decode", "s")):
            plans = [plan for row in rows.values() for plan in ((row,) if phase in row else row.values())]
            found = [plan[phase] for plan in plans if isinstance(plan, dict) and phase in plan]
            if found:
                predicted, measured = [one["predicted"] for one in found], [one["speed"] for one in found]
                times.plot(predicted, measured, marker, label=f"{key.partition(',')[0]}, {phase}")
    ends = np.array([1.0, 1.65])
    times.plot(ends, ends, color="0.5", linewidth=0.8)
    times.fill_between(ends, ends / 1.08, ends * 1.08, color="0.9", label="within 8 %")
    times.set_xlabel("predicted speed, multiple of the original's")
    times.set_ylabel("measured speed")
    for key, rows in result.items():
        for phase in ("prefill", "decode") if key.startswith("smollm2") else ():
            for name, color in (("time", "#d1495b"), ("parameters", "#0b5fa5")):
                found = [row[name] for row in rows.values() if phase in row.get(name, {})]
                if found:
                    speeds = [one[phase]["speed"] for one in found]
                    style = "-" if phase == "prefill" else "--"
                    label = f"{phase}, planned for {name}"
                    quality.plot(speeds, [one["perplexity"] for one in found], f"o{style}", color=color, label=label)
    quality.set_yscale("log")
    quality.yaxis.set_major_formatter("{x:.0f}")
    quality.yaxis.set_minor_formatter("{x:.0f}")
    quality.set_xlabel("measured speed, multiple of the original's")
    quality.set_ylabel("perplexity")
    for axes in (times, quality):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "speed-targets.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("smollm2", "wide", "picture"))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--phase", default="prefill", choices=("prefill", "decode", "both"))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--no-sharing", action="store_true")
    parser.add_argument("--only-time", action="store_true", help="leave out the plans for parameters")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "speed-targets", help="where statistics are kept")
    options = parser.parse_args()
    if options.what == "picture":
        picture()
        return
    options.recipe = Recipe.create(
        ratio=0.2, tokens=options.tokens, batch=options.batch, across_depth=not options.no_sharing
    )
    key = f"{options.what}, {options.phase}" + (f", batch {options.batch}" if options.batch > 1 else "")
    result = read(NAME)
    rows = result.setdefault(key, {})
    options.targets = [float(target) for target in options.targets.split(",") if target not in rows]
    try:
        {"smollm2": run_smollm2, "wide": run_wide}[options.what](options, rows)
    finally:
        save(NAME, {**result, "machine": machine()})


if __name__ == "__main__":
    main()
