"""What mending after the plan is worth: the anchored refit, refinement of the blocks, recovery of the whole, and both.

``python benchmarks/propagation.py --ratios 0.4`` (two hours per ratio on two cores). SmolLM2-135M is planned by
``auto``, with moments of 64 windows of ``wiki.valid.raw``, and every row executes that plan: as it is, with its blocks
refitted, or refined for ``--refine`` minutes, on the same windows; the whole is recovered for ``--recover`` minutes on
``wiki.valid.raw``, from the plan and from the refined model. The moments of the plan are those of ``ablation.py``;
what comes after runs in the dtype that the program chooses on the machine. Perplexities on WikiText-2, C4 and prose are
multiples of the original's on the same windows. It runs the program's own verbs, and goes on where it was stopped;
folders are in ``--output``.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basis_sharing.evaluation.perplexity import load, measure, prepare_text
from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, continue_prompt, encode_prompts
from common import DATA, ROOT, TEST_TEXT, machine, need_data, read, save, smollm2

TEXTS = {
    "WikiText-2": TEST_TEXT,
    "C4": f"c4:{DATA}/c4/c4_demo.jsonl.gz",
    "prose": f"{DATA}/calibration/warandpeace.txt.gz",
}
VALID = f"{DATA}/wikitext2/wiki.valid.raw"
ROWS = ("plan", "refitted", "refined", "recovered", "refined and recovered")


def verb(output: Path, *arguments: object) -> float | None:
    """Run a verb of the program whose output is not there yet; return the seconds it took."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        return None
    start = time.monotonic()
    print("basis-sharing", *arguments, "-o", output, flush=True)
    subprocess.run([sys.executable, "-m", "basis_sharing", *map(str, arguments), "-o", str(output)], check=True)
    return time.monotonic() - start


def window_nats(model: Any, tokenizer: Any, windows: int) -> dict[str, list[float]]:
    """Return the nats per token of every window of every text."""
    found = {}
    for name, text in TEXTS.items():
        prepared = prepare_text(model, tokenizer, text, windows=windows, length=2048)
        found[name] = list(measure(model, prepared).window_nats)
    return found


def samples(model: Any, tokenizer: Any) -> list[str]:
    """Return what a model writes after a few prompts."""
    prompts = encode_prompts(model, tokenizer, DEFAULT_PROMPTS, NEW_TOKENS)
    written = [continue_prompt(model, tokenizer, prompt, NEW_TOKENS).text for prompt in prompts]
    return [prompt + text for prompt, text in zip(DEFAULT_PROMPTS, written, strict=True)]


def against(found: dict[str, list[float]], dense: dict[str, list[float]]) -> dict[str, Any]:
    """Return perplexities as multiples of the original's, with the standard error of the mean rise."""
    told = {}
    for name, nats in found.items():
        rises = np.array(nats) - np.array(dense[name])
        error = float(rises.std(ddof=1) / math.sqrt(len(rises)))
        told[name] = {"times_dense": float(np.exp(rises.mean())), "standard_error": error}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--refine", type=float, default=20)
    parser.add_argument("--recover", type=float, default=30)
    parser.add_argument("--evaluation-windows", type=int, default=16)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "propagation")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    options = parser.parse_args()
    need_data()
    source, chosen = smollm2(), options.rows.split(",")
    results = read("propagation")
    if results.get("evaluation_windows") != options.evaluation_windows:
        results = {"rows": {}}
    model, tokenizer = load(source, torch.float32)
    if "dense" not in results:
        results["dense"] = window_nats(model, tokenizer, options.evaluation_windows)
        results["dense_texts"] = samples(model, tokenizer)
    results |= {"machine": machine(), "evaluation_windows": options.evaluation_windows}
    save("propagation", results)
    text = ("--windows", 64, "--length", 2048, "--calibration", VALID, "--dtype", "float32", "--work", options.work)
    for ratio in options.ratios.split(","):
        plan = options.output / f"{ratio}.json"
        verb(plan, "plan", source, "--ratio", ratio, *text, "--calibration-dtype", "float32")
        compress = ("compress", source, "--plan", plan, *text)
        folders = {name: options.output / f"{ratio}-{name.replace(' ', '-')}" for name in ROWS}
        steps = {
            "plan": compress,
            "refitted": (*compress, "--refit", "anchored"),
            "refined": (*compress, "--refine", options.refine),
            "recovered": ("recover", folders["plan"], "--calibration", VALID, "--minutes", options.recover),
            "refined and recovered": (
                *("recover", folders["refined"], "--calibration", VALID, "--minutes", options.recover),
            ),
        }
        for name in (name for name in ROWS if name in chosen):
            seconds = verb(folders[name], *steps[name])
            known = results["rows"].get(f"{ratio} {name}")
            if known is not None and seconds is None:
                continue
            small, _ = load(folders[name])
            nats = window_nats(small, tokenizer, options.evaluation_windows)
            row = {
                "seconds": seconds if seconds is not None else (known or {}).get("seconds"),
                **against(nats, results["dense"]),
                "texts": samples(small, tokenizer),
                "window_nats": nats,
            }
            results["rows"][f"{ratio} {name}"] = row
            save("propagation", results)
            print(ratio, name, {key: row[key] for key in (*TEXTS, "seconds")}, flush=True)


if __name__ == "__main__":
    main()
