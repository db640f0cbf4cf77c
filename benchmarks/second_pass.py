"""Whether a second pass of the planner pays: ranks, or ranks and factors, from moments of the compressed model.

``python benchmarks/second_pass.py --ratios 0.4`` (a quarter of an hour per ratio on two cores with bf16 products).
SmolLM2-135M is planned and compressed, without sharing; its own inputs and loss gradients are then measured on the same
64 windows of ``wiki.valid.raw``, and the original's weights are planned again with those. Rows: the first pass; the
first pass's factors at the second one's ranks; ranks and factors of the second pass. Perplexities on WikiText-2 and C4
are multiples of the original's on the same windows.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation import Bench, bench_for
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import search_space
from basis_sharing.planning.targets import costs_of
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.target import Target
from basis_sharing.treatments.base import Search
from basis_sharing.weightings.base import Weighting
from basis_sharing.weightings.loss import Loss
from common import DATA, ROOT, TEST_TEXT, evaluation_on, machine, read, save

TEXTS = {"WikiText-2": TEST_TEXT, "C4": f"c4:{DATA}/c4/c4_demo.jsonl.gz"}


def planned(bench: Bench, weighting: Weighting, ratio: str) -> Plan:
    """Return the best plan without sharing."""
    run, planning = bench.run, Planning(across_roles=False, across_depth=False)
    cost = costs_of(Target(ratio=float(ratio)), run.model)[0]
    search = Search(run.model, run.decoder, weighting, cost, planning, progress=run.progress)
    return Planner(run.decoder, search_space(search), planning.method, planning.gradients).at_ratio(float(ratio))


def nats(bench: Bench, texts: Mapping[str, EvaluationText], model: Any) -> dict[str, float]:
    """Return the nats per token of a model on every text."""
    return {name: measure(model, text, progress=bench.run.progress).nats_per_token for name, text in texts.items()}


def passes(bench: Bench, texts: Mapping[str, EvaluationText], ratio: str) -> dict[str, dict[str, float]]:
    """Return the nats per token of every row on every text."""
    first = bench.collect("auto").weighting
    small = bench.compressed(planned(bench, first, ratio), first)
    rows = {"first pass": nats(bench, texts, small)}
    # What the compressed model reads, and how its loss changes.
    with Loss.collected(replace(bench.run, model=small, work=None), bench.calibration) as second:
        again = planned(bench, second, ratio)
        rows["ranks of the second pass"] = nats(bench, texts, bench.compressed(again, first))
        rows["second pass"] = nats(bench, texts, bench.compressed(again, second))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", default="0.2,0.4")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    options = parser.parse_args()
    results = {**read("second-pass"), "machine": machine(), "windows": options.windows}
    windows = (options.windows, options.evaluation_windows)
    with (
        progress_bars() as progress,
        bench_for("smollm2", *windows, work=options.work, dtype="auto", progress=progress) as bench,
    ):
        texts = {name: evaluation_on(bench.run, text, windows[1]) for name, text in TEXTS.items()}
        dense = nats(bench, texts, bench.run.model)
        for ratio in options.ratios.split(","):
            results[ratio] = {
                row: {text: math.exp(found[text] - dense[text]) for text in TEXTS}
                for row, found in passes(bench, texts, ratio).items()
            }
            print(ratio, results[ratio], flush=True)
            save("second-pass", results)


if __name__ == "__main__":
    main()
