"""What each ingredient of the planner is worth: ``auto`` against the published methods and against itself without one.

``python benchmarks/ablation.py [--model gemma]`` (hours on two cores; ``--rows`` and ``--ratios`` choose some, and
rows that are in the results already are skipped, so that it can be stopped at any time). Calibration is on 64 windows
of 2048 tokens of ``wiki.valid.raw``, perplexity on ``wiki.test.raw``; everything in fp32. ``--cache DIR`` keeps the
second moments for the next start. Prints rank correlation and error of the prediction at the end, and draws
``docs/ablation-MODEL.png``.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basis_sharing.calibrate import Calibration, calibrated
from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.calibration.windows import EvaluationText, calibration_windows
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.factorization.execute import factorize
from basis_sharing.layers.surgery import install_factors, projection_parameters
from basis_sharing.linalg.truncation import losses
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import load_model, load_tokenizer, resolve
from basis_sharing.pipeline import fixed_plan
from basis_sharing.plan import Plan
from basis_sharing.planning.candidates import Candidates, find_candidates
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.sensitivity import measure_sensitivity
from basis_sharing.planning.uniform import uniform_plan
from basis_sharing.presets import PRESETS, Weighting
from basis_sharing.progress import ProgressCallback
from basis_sharing.recipe import Form, Recipe
from basis_sharing.weighting import Weigher
from common import DATA, ROOT, TEST_TEXT, gemma, machine, need_data, read, save, smollm2

MODELS: dict[str, Callable[[], Path]] = {"smollm2": smollm2, "gemma": gemma}
RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")
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

    model: Any
    decoder: Decoder
    calibration: Calibration
    text: EvaluationText
    store: MomentStore
    progress: ProgressCallback
    candidates: dict[bool, Candidates] = field(default_factory=dict)
    weighers: dict[Weighting, Weigher] = field(default_factory=dict)

    def weigher(self, weighting: Weighting) -> Weigher:
        """Return the weigher of a weighting, measured when it is first asked for."""
        if weighting not in self.weighers:
            ids, dtype = self.calibration.windows.input_ids, self.calibration.dtype
            sensitivity, fisher = None, None
            if weighting == Weighting.SENSITIVITY:
                unscaled = Weigher(weighting, self.store, sensitivity={p.name: 1.0 for p in self.decoder.projections})
                sensitivity = measure_sensitivity(
                    self.model, self.decoder, unscaled, ids, dtype=dtype, progress=self.progress
                )
            if weighting == Weighting.FISHER:
                windows = copy.copy(self.calibration.windows)
                object.__setattr__(windows, "input_ids", ids[:FISHER_WINDOWS])
                with calibrated(weighting, self.model, self.decoder, Calibration(windows, dtype), self.progress) as w:
                    fisher = w.fisher
            self.weighers[weighting] = Weigher(weighting, self.store, fisher=fisher, sensitivity=sensitivity)
        return self.weighers[weighting]

    def planner(self, *, gradients: bool = True, roles: bool = True, depth: bool = True, form: Form) -> Planner:
        """Return a planner with these ingredients."""
        if gradients not in self.candidates:
            weigher = self.weigher(Weighting.LOSS if gradients else Weighting.SENSITIVITY)
            self.candidates[gradients] = find_candidates(self.model, self.decoder, weigher, progress=self.progress)
        candidates = self.candidates[gradients].restricted(across_roles=roles, across_depth=depth)
        return Planner(self.decoder, candidates, "auto", gradients, form)

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
    name: str, windows: int, evaluation_windows: int | None, cache: Path, device: str, progress: ProgressCallback
) -> Bench:
    """Load a model, and collect or find its second moments."""
    source = resolve(MODELS[name]())
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32).to(device).eval()
    decoder = describe(model)
    text = calibration_windows(
        f"{DATA}/wikitext2/wiki.valid.raw",
        tokenizer=tokenizer,
        windows=windows,
        length=2048,
        seed=2023,
        vocab_size=model.config.vocab_size,
        progress=progress,
    )
    calibration = Calibration(text, torch.float32)
    folder = cache / f"{name}-{text.fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    store = MomentStore(folder)
    if not (folder / "complete").exists():
        start = time.monotonic()
        for block, moments in backward_sweep(model, decoder, text.input_ids, dtype=torch.float32, progress=progress):
            store.put(block, moments)
        (folder / "complete").write_text(f"{time.monotonic() - start:.0f} s\n", encoding="utf-8")
    prepared = prepare_text(model, tokenizer, TEST_TEXT, windows=evaluation_windows, length=2048)
    return Bench(model, decoder, calibration, prepared, store, progress)


def run_row(bench: Bench, variant: str, ratio: str, dense: float) -> dict[str, Any]:
    """Compress, measure, and return what was found."""
    start = time.monotonic()
    plan, weigher = bench.plan(variant, Fraction(ratio))
    planned = time.monotonic()
    model = copy.deepcopy(bench.model)
    for outcome in factorize(bench.model, bench.decoder, plan, weigher, progress=bench.progress):
        install_factors(model, outcome.factors)
    factorized = time.monotonic()
    found = measure(model, bench.text, progress=bench.progress)
    predicts = variant.startswith("auto")
    return {
        "method": variant,
        "ratio": float(ratio),
        "parameters": projection_parameters(model, [p.name for p in bench.decoder.projections]),
        "multiplications": plan.multiplications(bench.decoder),
        "shared_groups": sum(len(group.members) > 1 for group in plan.groups),
        "expected_loss": sum(group.loss or 0.0 for group in plan.groups) if predicts else None,
        "loss_rise": found.nats_per_token - dense,
        "times_dense": float(np.exp(found.nats_per_token - dense)),
        "seconds": {"plan": planned - start, "factorize": factorized - planned},
    }


def prediction_quality(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare expected and true loss rises of the planned rows with gradients."""
    known = [r for r in rows if r["expected_loss"] and "without gradients" not in r["method"]]
    if len(known) < 3:
        return {}
    expected, true = (np.array([r[key] for r in known]) for key in ("expected_loss", "loss_rise"))
    ranks = [values.argsort().argsort() for values in (expected, true)]
    point = next((r for r in known if r["method"] == "auto" and r["ratio"] == 0.2), known[0])
    scale = point["loss_rise"] / point["expected_loss"]
    low = [r for r in known if r["ratio"] <= 0.4]
    errors = [r["expected_loss"] * scale / r["loss_rise"] - 1 for r in low]
    perplexity = [abs(r["expected_loss"] * scale - r["loss_rise"]) for r in low]
    return {
        "plans": len(known),
        "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "scale": scale,
        "largest_error_of_loss_rise": float(max(errors, key=abs)),
        "largest_error_of_perplexity": float(np.expm1(max(perplexity))),
    }


def draw(name: str, rows: list[dict[str, Any]]) -> None:
    """Draw perplexity against ratio for every row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for variant in VARIANTS:
        points = sorted((r["ratio"], r["times_dense"]) for r in rows if r["method"] == variant)
        if points:
            style = "-o" if variant == "auto" else ("--." if variant.startswith("auto") else ":s")
            axes.plot(*zip(*points, strict=True), style, label=variant, linewidth=2.5 if variant == "auto" else 1.2)
    axes.set_yscale("log")
    axes.set_ylim(0.95, 30)
    axes.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20], ["1 x", "1.2", "1.5", "2", "3", "5", "10", "20 x"])
    axes.minorticks_off()
    axes.set_xlabel("fraction of parameters removed from the compressible projections")
    axes.set_ylabel("perplexity on wiki.test.raw, multiple of the original's")
    axes.set_title(f"{name}: what each ingredient is worth", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    (ROOT / "docs").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / f"ablation-{name}.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=None)
    parser.add_argument("--rows", default=",".join(VARIANTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ratios", default=",".join(RATIOS))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/basis-sharing-ablation"))
    options = parser.parse_args()
    need_data()
    name = f"ablation-{options.model}"
    with progress_bars() as progress:
        bench = bench_for(
            options.model, options.windows, options.evaluation_windows, options.cache, options.device, progress
        )
        setting = {
            "windows": len(bench.calibration.windows.input_ids),
            "calibration": bench.calibration.windows.fingerprint,
            "evaluation_windows": len(bench.text.input_ids),
        }
        earlier = read(name)
        if {key: earlier.get(key) for key in setting} != setting:
            earlier = {}
        dense = earlier.get("dense_nats") or measure(bench.model, bench.text, progress=progress).nats_per_token
        rows = {(row["method"], row["ratio"]): row for row in earlier.get("rows", [])}
        for ratio in options.ratios.split(","):
            for variant in VARIANTS:
                if (variant, float(ratio)) in rows or variant not in options.rows.split(","):
                    continue
                rows[variant, float(ratio)] = run_row(bench, variant, ratio, dense)
                print(rows[variant, float(ratio)], flush=True)
                listed = sorted(rows.values(), key=lambda r: (r["ratio"], VARIANTS.index(r["method"])))
                result = {"machine": machine(), **setting, "dense_nats": dense, "rows": listed}
                save(name, {**result, "prediction": prediction_quality(listed)})
    draw(options.model, list(rows.values()))
    print(prediction_quality(list(rows.values())))


if __name__ == "__main__":
    main()
