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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basis_sharing.calibration.collect import Calibration, calibrated
from basis_sharing.calibration.windows import EvaluationText, calibration_windows
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.linalg.truncation import Truncation, losses
from basis_sharing.models.decoder import describe
from basis_sharing.models.families import needs_bos
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import fingerprint, load_model, load_tokenizer, resolve
from basis_sharing.planning.from_recipe import fixed_plan, planner_for
from basis_sharing.planning.planner import Planner
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.presets import PRESETS, Weighting
from basis_sharing.recipe.recipe import Form, Recipe
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.run import Subject
from basis_sharing.run.work import WorkFolder
from basis_sharing.runtime.surgery import install_factors, projection_parameters
from basis_sharing.treatments.factors.solve import factorize
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher
from common import DATA, MODELS, ROOT, TEST_TEXT, machine, need_data, read, save

RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")
SHARING_RATIOS = ("0.2", "0.3", "0.4", "0.5", "0.6", "0.7")
FISHER_WINDOWS = 8
VARIANTS = (
    "auto",
    "auto without sharing across layers",
    "auto without joint roles",
    "auto without any sharing",
    "auto without allocation",
    "auto without pivoting",
    "auto without gradients",
    "svd-llm",
    "basis-sharing",
    "asvd",
    "fwsvd",
    "svd",
)


@dataclass
class Bench:
    """The model, its statistics, and what has been computed from them so far."""

    subject: Subject
    calibration: Calibration
    short_calibration: Calibration
    text: EvaluationText
    algebra: torch.device
    progress: ProgressCallback
    planners: dict[bool, Planner] = field(default_factory=dict)
    weighers: dict[Weighting, Weigher] = field(default_factory=dict)
    decompositions: dict[tuple[str, ...], Truncation] = field(default_factory=dict)
    decomposed_for: Weighting | None = None

    @property
    def model(self) -> Any:
        """The original."""
        return self.subject.model

    @property
    def decoder(self) -> Decoder:
        """Its decoder."""
        return self.subject.decoder

    def weigher(self, weighting: Weighting) -> Weigher:
        """Return the weigher of a weighting, measured when it is first asked for and kept in the work folder."""
        if weighting not in self.weighers:
            # Gradients of all weights take their time.
            calibration = self.short_calibration if weighting == Weighting.FISHER else self.calibration
            with calibrated(weighting, self.subject, calibration, self.progress) as weigher:
                self.weighers[weighting] = replace(weigher, device=self.algebra)
        return self.weighers[weighting]

    def planner(self, *, gradients: bool = True, roles: bool = True, depth: bool = True, form: Form) -> Planner:
        """Return a planner with these ingredients."""
        if gradients not in self.planners:
            weigher = self.weigher(Weighting.LOSS if gradients else Weighting.SENSITIVITY)
            recipe = Recipe.create(ratio=0.5, gradients=gradients)
            self.planners[gradients] = planner_for(recipe, self.subject, weigher, self.calibration, self.progress)
        planner = self.planners[gradients]
        candidates = planner.candidates.restricted(across_roles=roles, across_depth=depth)
        return replace(planner, candidates=candidates, form=form)

    def compressed(self, plan: Plan, weigher: Weigher) -> Any:
        """Return the model that a plan makes; rows with one weighting share their decompositions."""
        if self.decomposed_for != weigher.weighting:
            self.decompositions, self.decomposed_for = {}, weigher.weighting
        model = copy.deepcopy(self.model)
        for outcome in factorize(
            self.model, self.decoder, plan, weigher, remembered=self.decompositions, progress=self.progress
        ):
            install_factors(model, outcome.factors)
        return model

    def window_nats(self, model: Any, known: Sequence[float] = ()) -> list[float]:
        """Return the nats per token of every evaluation window, of which the first are known."""
        left = replace(self.text, input_ids=self.text.input_ids[len(known) :])
        if not len(left.input_ids):
            return list(known)
        device = self.subject.machine.device
        return [*known, *measure(model, left, device=device, progress=self.progress).window_nats]

    def plan(self, variant: str, ratio: Fraction) -> tuple[Plan, Weigher]:
        """Return the plan of a row and the weigher that executes it."""
        loss = Weighting.LOSS
        if variant in PRESETS and variant != "auto":
            weigher = self.weigher(PRESETS[variant].weighting)
            return fixed_plan(Recipe.create(ratio=float(ratio), method=variant), self.decoder), weigher
        if variant == "auto without gradients":
            planner = self.planner(gradients=False, form="pivoted")
            return planner.at_ratio(float(ratio)), self.weigher(Weighting.SENSITIVITY)
        if variant == "auto without allocation":
            return self._uniform(ratio), self.weigher(loss)
        planner = self.planner(
            roles=variant not in ("auto without joint roles", "auto without any sharing"),
            depth=variant not in ("auto without sharing across layers", "auto without any sharing"),
            form="plain" if variant == "auto without pivoting" else "pivoted",
        )
        return planner.at_ratio(float(ratio)), self.weigher(loss)

    def _uniform(self, ratio: Fraction) -> Plan:
        """Return private factors with the same rank for every projection of a shape, and what they should lose."""
        plan = uniform_plan(self.decoder, method="auto", ratio=ratio, group_size=1, shared_roles=(), form="pivoted")
        known = {p.name: p for p in self.decoder.projections}
        weigher = self.weigher(Weighting.LOSS)
        groups = []
        for group in plan.groups:
            problem = weigher.problem(self.model, [known[name] for name in group.members])
            groups.append(group.model_copy(update={"loss": losses(problem)[group.rank].item()}))
        return plan.model_copy(update={"groups": tuple(groups)})


def bench_for(
    name: str,
    windows: int,
    evaluation_windows: int | None,
    *,
    work: Path,
    device: str = "cpu",
    algebra: str | None = None,
    progress: ProgressCallback,
) -> Bench:
    """Load a model of ``MODELS`` and both texts."""
    source = resolve(MODELS[name]())
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)

    def calibration(count: int) -> Calibration:
        text = calibration_windows(
            f"{DATA}/wikitext2/wiki.valid.raw",
            tokenizer=tokenizer,
            windows=count,
            length=2048,
            seed=2023,
            vocab_size=model.config.get_text_config().vocab_size,
            bos=needs_bos(model.config.model_type),
            progress=progress,
        )
        return Calibration(text, torch.float32)

    prepared = prepare_text(model, tokenizer, TEST_TEXT, windows=evaluation_windows, length=2048)
    decoder, known = describe(model), fingerprint(source)
    kept, place = WorkFolder(work, known, "float32"), Machine(torch.device(device))
    subject = Subject(source, model, tokenizer, known, whole=decoder, decoder=decoder, work=kept, machine=place)
    short = calibration(min(windows, FISHER_WINDOWS))
    return Bench(subject, calibration(windows), short, prepared, torch.device(algebra or device), progress)


def run_row(bench: Bench, variant: str, ratio: str, known: Sequence[float]) -> tuple[dict[str, Any], list[float]]:
    """Compress, and return what was found and the nats per token of every window, of which the first are known."""
    start = time.monotonic()
    plan, weigher = bench.plan(variant, Fraction(ratio))
    planned = time.monotonic()
    model = bench.compressed(plan, weigher)
    factorized = time.monotonic()
    window_nats = bench.window_nats(model, known)
    row = {
        "method": variant,
        "ratio": float(ratio),
        "parameters": projection_parameters(model, [p.name for p in bench.decoder.projections]),
        "multiplications": plan.multiplications(bench.decoder),
        "shared_groups": sum(len(group.members) > 1 for group in plan.groups),
        "expected_loss": sum(group.loss or 0.0 for group in plan.groups) if variant.startswith("auto") else None,
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
            variant: bench.plan(variant, Fraction(ratio))[0]
            for variant in ("auto", "auto without sharing across layers", "auto without any sharing")
        }
        block = {p.name: p.block for p in bench.decoder.projections}
        role = {p.name: p.role for p in bench.decoder.projections}
        across = Counter(
            role[name]
            for group in plans["auto"].groups
            if len({block[name] for name in group.members}) > 1
            for name in group.members
        )
        expected = {variant: sum(group.loss or 0.0 for group in plan.groups) for variant, plan in plans.items()}
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
    need_data()
    name = f"ablation-{options.model}"
    with progress_bars() as progress:
        bench = bench_for(
            options.model,
            options.windows,
            options.evaluation_windows,
            work=options.work,
            device=options.device,
            algebra=options.algebra,
            progress=progress,
        )
        setting = {
            "windows": len(bench.calibration.windows.input_ids),
            "calibration": bench.calibration.windows.fingerprint,
        }
        earlier = read(name)
        if {key: earlier.get(key) for key in setting} != setting:
            earlier = {}
        setting |= {"sharing": earlier["sharing"]} if "sharing" in earlier else {}
        dense = bench.window_nats(bench.model, earlier.get("dense_window_nats", ()))
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
    draw(options.model, list(rows.values()))
    print(prediction_quality(list(rows.values()), dense))


def keep(name: str, setting: dict[str, Any], rows: Iterable[dict[str, Any]], dense: Sequence[float]) -> None:
    """Write what is known so far."""
    listed = sorted(rows, key=lambda r: (r["ratio"], VARIANTS.index(r["method"])))
    prediction = prediction_quality(listed, dense)
    save(name, {"machine": machine(), **setting, "prediction": prediction, "dense_window_nats": dense, "rows": listed})


if __name__ == "__main__":
    main()
