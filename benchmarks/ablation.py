"""What each ingredient of the planner is worth: ``auto`` against the published methods and against itself without one.

``python benchmarks/ablation.py [--model gemma]`` (a day on two cores; ``--rows`` and ``--ratios`` choose some, and it
can be stopped at any time: what the results hold is not measured again). Calibration is on 64 windows of 2048 tokens of
``wiki.valid.raw``, perplexity on the first ``--evaluation-windows`` of ``wiki.test.raw``; everything in fp32. A row
that was measured on fewer windows than asked is measured on the others too. What is measured on the original is kept
in ``--work DIR`` for the next start. With ``--device cuda`` blocks and models run there, and matrices are decomposed
there or, with ``--algebra cpu``, beside it. Prints rank correlation and error of the prediction at the end, and draws
``docs/images/ablation-MODEL.png``.
"""

import argparse
import copy
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basis_sharing.calibration.text import CalibrationText
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.linalg.group_losses import losses
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.published import published_plan
from basis_sharing.planning.stage import known_curves, planner_for
from basis_sharing.planning.targets import costs_of
from basis_sharing.plans.plan import Plan, spans_blocks
from basis_sharing.recipe.model import DtypeName
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.target import Target
from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.run import Run
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.surgery import projection_parameters
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.treatment import FactorsTreatment
from basis_sharing.weightings.base import WEIGHTINGS, Weighting
from basis_sharing.weightings.fisher import Fisher
from basis_sharing.weightings.stage import Collect
from common import MODELS, ROOT, TEST_TEXT, VALID_TEXT, calibration_on, evaluation_on, machine, read, real_model, save

RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")
SHARING_RATIOS = ("0.2", "0.3", "0.4", "0.5", "0.6", "0.7")
FISHER_WINDOWS = 8
UNIFORM = "auto without allocation"
VARIANTS = {
    "auto": Planning(),
    "auto without sharing across layers": Planning(across_depth=False),
    "auto without joint roles": Planning(across_roles=False),
    "auto without any sharing": Planning(across_depth=False, across_roles=False),
    UNIFORM: Planning(),
    "auto without pivoting": Planning(form="plain"),
    "auto without gradients": Planning(gradients=False),
    **{method: Planning(method=method) for method in ("svd-llm", "basis-sharing", "asvd", "fwsvd", "svd")},
}


@dataclass
class Bench:
    """The model, its statistics, and what has been computed from them so far."""

    run: Run
    calibration: CalibrationText
    short_calibration: CalibrationText
    text: EvaluationText
    algebra: torch.device
    planners: dict[str, Planner] = field(default_factory=dict)
    collected: dict[str, Collect] = field(default_factory=dict)
    treatment: FactorsTreatment = field(default_factory=FactorsTreatment)
    treated_for: Weighting | None = None

    def collect(self, variant: str) -> Collect:
        """Return the statistics of a row's weighting, measured when asked for first, and kept in the work folder."""
        name = VARIANTS[variant].weighting
        if name not in self.collected:
            # Gradients of all weights take their time.
            text = self.short_calibration if name == Fisher.name else self.calibration
            collect = Collect(WEIGHTINGS[name], text)
            collect.run(self.run)
            collect.weighting.device = self.algebra
            self.collected[name] = collect
        return self.collected[name]

    def plan(self, variant: str, ratio: Fraction) -> Plan:
        """Return the plan of a row."""
        planning = VARIANTS[variant]
        if not planning.preset.planned:
            return published_plan(planning, ratio, self.run.decoder)
        collect = self.collect(variant)
        if variant == UNIFORM:
            return self._with_losses(published_plan(planning, ratio, self.run.decoder), collect.weighting)
        if variant not in self.planners:
            with known_curves(self.run, collect.weighting, self.calibration) as curves:
                cost = costs_of(Target(ratio=float(ratio)), self.run.model)[0]
                self.planners[variant] = planner_for(planning, cost, self.run, collect, curves)
        return self.planners[variant].at_ratio(float(ratio))

    def _with_losses(self, plan: Plan, weighting: Weighting) -> Plan:
        """Return a plan with what its groups should lose."""
        entries = []
        for entry in plan.entries:
            assert isinstance(entry, Factors)
            problem = weighting.problem(
                self.run.model, [self.run.decoder.projection_by_name[name] for name in entry.members]
            )
            entries.append(replace(entry, loss=losses(problem)[entry.rank].item()))
        return plan.model_copy(update={"entries": tuple(entries)})

    def compressed(self, plan: Plan, weighting: Weighting) -> Any:
        """Return the model that a plan makes; rows with one weighting share their decompositions."""
        if self.treated_for is not weighting:
            self.treatment, self.treated_for = FactorsTreatment(remembered={}), weighting
        run, treatments = self.run, {Factors.kind: self.treatment}
        model = copy.deepcopy(run.model)
        for outcome in execute(run.model, run.decoder, plan, weighting, treatments=treatments, progress=run.progress):
            install(model, outcome)
        return model

    def window_nats(self, model: Any, known: Sequence[float] = ()) -> list[float]:
        """Return the nats per token of every evaluation window, of which the first are known."""
        left = replace(self.text, input_ids=self.text.input_ids[len(known) :])
        if not len(left.input_ids):
            return list(known)
        device, progress = self.run.machine.device, self.run.progress
        return [*known, *measure(model, left, device=device, progress=progress).window_nats]


@contextmanager
def bench_for(
    name: str,
    windows: int,
    evaluation_windows: int | None,
    *,
    work: Path,
    dtype: DtypeName = "float32",
    device: str = "cpu",
    algebra: str | None = None,
    progress: ProgressCallback,
) -> Iterator[Bench]:
    """Open a model of ``MODELS``, and load both texts; ``dtype`` is that of the calibration pass."""
    with real_model(name, work=work, device=device, progress=progress) as run:
        long, short = (calibration_on(run, VALID_TEXT, n, dtype) for n in (windows, min(windows, FISHER_WINDOWS)))
        yield Bench(
            run, long, short, evaluation_on(run, TEST_TEXT, evaluation_windows), torch.device(algebra or device)
        )


def expected_loss(plan: Plan) -> float:
    """Return what the entries of a plan are expected to lose."""
    return sum(entry.loss or 0.0 for entry in plan.entries)


def run_row(bench: Bench, variant: str, ratio: str, known: Sequence[float]) -> tuple[dict[str, Any], list[float]]:
    """Compress, and return what was found and the nats per token of every window, of which the first are known."""
    start = time.monotonic()
    plan, weighting = bench.plan(variant, Fraction(ratio)), bench.collect(variant).weighting
    planned = time.monotonic()
    model = bench.compressed(plan, weighting)
    factorized = time.monotonic()
    window_nats = bench.window_nats(model, known)
    row = {
        "method": variant,
        "ratio": float(ratio),
        "parameters": projection_parameters(model, [p.name for p in bench.run.decoder.projections]),
        "multiplications": plan.multiplications(bench.run.decoder),
        "shared_groups": sum(len(entry.members) > 1 for entry in plan.entries),
        "expected_loss": expected_loss(plan) if variant.startswith("auto") else None,
        "seconds": {
            "plan": planned - start,
            "factorize": factorized - planned,
            "evaluate": time.monotonic() - factorized,
        },
    }
    return row, window_nats


def against_dense(row: dict[str, Any], window_nats: list[float], dense: Sequence[float]) -> dict[str, Any]:
    """Return a row with what it means: the dense model's loss on the same windows taken off."""
    rises = np.array(window_nats) - np.array(dense[: len(window_nats)])
    return {
        **row,
        "windows": len(rises),
        "loss_rise": float(rises.mean()),
        "standard_error": float(rises.std(ddof=1) / np.sqrt(len(rises))) if len(rises) > 1 else None,
        "times_dense": float(np.exp(rises.mean())),
        "window_nats": window_nats,
    }


def common_rises(rows: Sequence[dict[str, Any]], dense: Sequence[float]) -> list[float]:
    """Return the loss rises of rows over the windows that all of them were measured on."""
    windows = min(len(row["window_nats"]) for row in rows)
    return [float(np.mean(row["window_nats"][:windows]) - np.mean(dense[:windows])) for row in rows]


def prediction_quality(rows: Sequence[dict[str, Any]], dense: Sequence[float]) -> dict[str, Any]:
    """Compare expected and true loss rises of the planned rows with gradients.

    One point, ``auto`` at 0.3, gives the scale between expected and true rises, as one measured plan does for the
    program (``--evaluate``, ``--max-perplexity-increase``).
    """
    known = [r for r in rows if r["expected_loss"] and "without gradients" not in r["method"]]
    points = [i for i, r in enumerate(known) if r["method"] == "auto" and r["ratio"] == 0.3]
    if len(known) < 3 or not points:
        return {}
    expected = np.array([r["expected_loss"] for r in known])
    true = np.array(common_rises(known, dense))
    ranks = [values.argsort().argsort() for values in (expected, true)]
    scale = float(true[points[0]] / expected[points[0]])
    low = np.array([r["ratio"] <= 0.4 for r in known])
    errors = np.expm1(expected * scale - true)
    names = [f"{r['method']} {r['ratio']}" for r in known]
    worst = max(np.flatnonzero(low), key=lambda i: abs(errors[i]))
    return {
        "plans": len(known),
        "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "scale": scale,
        "plans_up_to_0.4": int(low.sum()),
        "largest_error_of_perplexity": float(errors[worst]),
        "largest_error_at": names[worst],
        "median_error_of_perplexity": float(np.median(np.abs(errors[low]))),
        "largest_error_of_perplexity_at_any_ratio": float(errors[np.abs(errors).argmax()]),
        "error_of_loss_rise": dict(zip(names, (expected * scale / true - 1).round(3).tolist(), strict=True)),
    }


def sharing_gains(bench: Bench) -> list[dict[str, Any]]:
    """Return what sharing is expected to gain at each ratio, and which roles the plans share across layers."""
    found = []
    for ratio in SHARING_RATIOS:
        plans = {
            variant: bench.plan(variant, Fraction(ratio))
            for variant in ("auto", "auto without sharing across layers", "auto without any sharing")
        }
        decoder = bench.run.decoder
        across = Counter(
            decoder.projection_by_name[name].role
            for entry in plans["auto"].entries
            if spans_blocks(entry, decoder)
            for name in entry.members
        )
        expected = {variant: expected_loss(plan) for variant, plan in plans.items()}
        found.append({"ratio": float(ratio), "expected_loss": expected, "projections_shared_across_layers": across})
    return found


def draw(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draw perplexity against ratio for every row, each on the windows it was measured on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    times = {(r["method"], r["ratio"]): r["times_dense"] for r in rows}
    top = min(1.2 * max(times.values()), 30)
    for variant in VARIANTS:
        points = sorted((ratio, value) for (method, ratio), value in times.items() if method == variant)
        if points:
            style = "-o" if variant == "auto" else ("--." if variant.startswith("auto") else ":s")
            label = variant if points[0][1] < top else f"{variant} (above: {points[0][1]:.2g} x at {points[0][0]:.0%})"
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=2.5 if variant == "auto" else 1.2)
    axes.set_yscale("log")
    axes.set_ylim(0.95, top)
    shown = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20) if tick <= top]
    axes.set_yticks(shown, [f"{tick:g} x" for tick in shown])
    ratios = sorted({ratio for _, ratio in times})
    axes.set_xticks(ratios, [f"{ratio:.0%}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel("parameters removed from the compressible projections")
    axes.set_ylabel("perplexity on wiki.test.raw, multiple of the original's")
    axes.set_title(f"{name}: what each ingredient is worth", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    figure.savefig(images / f"ablation-{name}.png", dpi=150)


def measured(bench: Bench, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[float]]:
    """Measure the rows that are not known yet; return all rows, and the dense model's nats per token."""
    name = f"ablation-{options.model}"
    text = bench.calibration
    setting: dict[str, Any] = {"windows": len(text.input_ids), "calibration": text.windows.fingerprint}
    earlier = read(name)
    if {key: earlier.get(key) for key in setting} != setting:
        earlier = {}
    setting |= {"sharing": earlier["sharing"]} if "sharing" in earlier else {}
    dense = bench.window_nats(bench.run.model, earlier.get("dense_window_nats", ()))
    rows = {(row["method"], row["ratio"]): row for row in earlier.get("rows", [])}
    keep(name, setting, rows.values(), dense)
    # One weighting after the other, so that its decompositions serve all ratios.
    chosen = [variant for variant in VARIANTS if variant in options.rows.split(",")]
    for variant, ratio in [(variant, ratio) for variant in chosen for ratio in options.ratios.split(",")]:
        known = rows.get((variant, float(ratio)), {}).get("window_nats", ())
        if len(known) >= len(bench.text.input_ids):
            continue
        rows[variant, float(ratio)] = row = against_dense(*run_row(bench, variant, ratio, known), dense)
        print({key: value for key, value in row.items() if key != "window_nats"}, flush=True)
        keep(name, setting, rows.values(), dense)
    keep(name, {**setting, "sharing": sharing_gains(bench)}, rows.values(), dense)
    return list(rows.values()), dense


def keep(name: str, setting: dict[str, Any], rows: Iterable[dict[str, Any]], dense: Sequence[float]) -> None:
    """Write what is known so far."""
    order = list(VARIANTS)
    listed = sorted(rows, key=lambda r: (r["ratio"], order.index(r["method"])))
    prediction = prediction_quality(listed, dense)
    save(name, {"machine": machine(), **setting, "prediction": prediction, "dense_window_nats": dense, "rows": listed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=None)
    parser.add_argument("--rows", default=",".join(VARIANTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--algebra", choices=("cpu", "cuda"))
    parser.add_argument("--ratios", default=",".join(RATIOS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    options = parser.parse_args()
    place = {"work": options.work, "device": options.device, "algebra": options.algebra}
    windows = (options.windows, options.evaluation_windows)
    with progress_bars() as progress, bench_for(options.model, *windows, **place, progress=progress) as bench:
        rows, dense = measured(bench, options)
    draw(options.model, rows)
    print(prediction_quality(rows, dense))


if __name__ == "__main__":
    main()
