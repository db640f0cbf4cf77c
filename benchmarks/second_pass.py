"""Whether a second pass of the planner pays: ranks, or ranks and factors, from moments of the compressed model.

``python benchmarks/second_pass.py --ratios 0.4`` (a quarter of an hour per ratio on two cores with bf16 products).
SmolLM2-135M is planned and compressed, without sharing; its own inputs and loss gradients are then measured on the same
64 windows of ``wiki.valid.raw``, and the original's weights are planned again with those. Rows: the first pass; the
first pass's factors at the second one's ranks; ranks and factors of the second pass. Perplexities on WikiText-2 and C4
are multiples of the original's on the same windows.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation import Bench, bench_for
from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.planning.from_recipe import planner_for
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.presets import Weighting
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.run.machine import default_dtype
from basis_sharing.weightings.weighting import Weigher
from common import DATA, ROOT, TEST_TEXT, machine, need_data, read, save

TEXTS = {"WikiText-2": TEST_TEXT, "C4": f"c4:{DATA}/c4/c4_demo.jsonl.gz"}


def planned(bench: Bench, weigher: Weigher, ratio: str) -> Plan:
    """Return the best plan without sharing."""
    recipe = Recipe.create(ratio=float(ratio), across_roles=False, across_depth=False)
    subject = replace(bench.subject, work=None)
    return planner_for(recipe, subject, weigher, bench.calibration, bench.progress).at_ratio(float(ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", default="0.2,0.4")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    options = parser.parse_args()
    need_data()
    results = {**read("second-pass"), "machine": machine(), "windows": options.windows}
    with tempfile.TemporaryDirectory() as room, progress_bars() as progress:
        bench = bench_for("smollm2", options.windows, options.evaluation_windows, work=options.work, progress=progress)
        bench.calibration = replace(bench.calibration, dtype=default_dtype())
        texts = {
            name: prepare_text(
                bench.model, bench.subject.tokenizer, text, windows=options.evaluation_windows, length=2048
            )
            for name, text in TEXTS.items()
        }

        def nats(model: Any) -> dict[str, float]:
            return {name: measure(model, text, progress=progress).nats_per_token for name, text in texts.items()}

        def measured(model: Any) -> Weigher:
            """Return the weigher of what a compressed model reads and how its loss changes."""
            found = backward_sweep(
                model,
                bench.decoder,
                bench.calibration.windows.input_ids,
                dtype=bench.calibration.dtype,
                progress=progress,
            )
            store = MomentStore(Path(room))
            store.fill(found)
            return Weigher(Weighting.LOSS, moments=store)

        dense, first = nats(bench.model), bench.weigher(Weighting.LOSS)
        for ratio in options.ratios.split(","):
            small = bench.compressed(planned(bench, first, ratio), first)
            rows = {"first pass": nats(small)}
            second = measured(small)
            again = planned(bench, second, ratio)
            rows["ranks of the second pass"] = nats(bench.compressed(again, first))
            bench.decompositions.clear()
            rows["second pass"] = nats(bench.compressed(again, second))
            bench.decompositions.clear()
            results[ratio] = {
                row: {text: math.exp(found[text] - dense[text]) for text in TEXTS} for row, found in rows.items()
            }
            print(ratio, results[ratio], flush=True)
            save("second-pass", results)


if __name__ == "__main__":
    main()
