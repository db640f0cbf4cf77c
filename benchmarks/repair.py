"""What mending after the plan is worth: the anchored refit, refinement of the blocks, recovery of the whole, and both.

``python benchmarks/repair.py --ratios 0.4 [--model gemma]`` (two hours per ratio on two cores).
SmolLM2-135M is planned by ``auto``, with moments of 64 windows of ``wiki.valid.raw``, and every row executes that plan:
as it is, with its blocks refitted, or refined for ``--refine`` minutes, on the same windows; the whole is recovered for
``--recover`` minutes on ``wiki.valid.raw``, from the refitted and from the refined model. The moments of the plan are
those of ``ablation.py``; what comes after runs in the dtype that the program chooses on the machine. Perplexities on
WikiText-2, C4 and prose are multiples of the original's on the same windows. With ``--task-limit N`` the paper's seven
tasks are scored on their first N examples each, in bf16, for the original and every chosen row. It runs the program's
own verbs, with the time and the peak of resident memory of each, and goes on where it was stopped; folders
are in ``--output``.

Another text for all of it is ``--text "FILE + FILE"``, a graphics card ``--device cuda``, and ``--epochs`` a recovery
that does not depend on the machine's speed; ``--name`` keeps such results apart.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basis_sharing import evaluate, load
from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, continue_prompt, encode_prompts
from common import DATA, MODELS, ROOT, TEST_TEXT, VALID_TEXT, machine, need_data, read, save, verb

TEXTS = {
    "WikiText-2": TEST_TEXT,
    "C4": f"c4:{DATA}/c4/c4_demo.jsonl.gz",
    "prose": f"{DATA}/calibration/warandpeace.txt.gz",
}
ROWS = ("plan", "refitted", "refined", "refitted and recovered", "refined and recovered")


def place(folder: Path, ratio: str, row: str) -> Path:
    """Return the folder of the model of a row."""
    return folder / f"{ratio}-{row.replace(' ', '-')}"


def window_nats(model: Any, tokenizer: Any, windows: int) -> dict[str, list[float]]:
    """Return the nats per token of every window of every text."""
    found = evaluate(model, list(TEXTS.values()), tokenizer=tokenizer, evaluation_windows=windows, length=2048)
    return {name: list(on.window_nats) for name, on in zip(TEXTS, found.perplexities, strict=True)}


def samples(model: Any, tokenizer: Any) -> list[str]:
    """Return what a model writes after a few prompts."""
    prompts = encode_prompts(model, tokenizer, DEFAULT_PROMPTS, NEW_TOKENS)
    written = [continue_prompt(model, tokenizer, prompt, NEW_TOKENS).text for prompt in prompts]
    return [prompt + text for prompt, text in zip(DEFAULT_PROMPTS, written, strict=True)]


def task_scores(model: Path, limit: int) -> dict[str, Any]:
    """Return the accuracy of a model in each of the paper's tasks, on the first examples, and their mean."""
    results = evaluate(model, tasks="paper", task_data=DATA / "zeroshot", limit=limit, dtype="bfloat16").tasks
    assert results is not None
    found = {score.task: score.accuracy for score in results.scores}
    return {"examples_per_task": limit, "accuracy": found, "mean": float(np.mean(list(found.values())))}


def against(found: dict[str, list[float]], dense: dict[str, list[float]]) -> dict[str, Any]:
    """Return perplexities as multiples of the original's, with the standard error of the mean rise."""
    told = {}
    for name, nats in found.items():
        rises = np.array(nats) - np.array(dense[name])
        error = float(rises.std(ddof=1) / math.sqrt(len(rises)))
        told[name] = {"times_dense": float(np.exp(rises.mean())), "standard_error": error}
    return told


def draw(name: str, rows: dict[str, Any]) -> None:
    """Draw perplexity against ratio for every row, one panel per text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TEXTS), sharey=True)
    ratios = sorted({key.partition(" ")[0] for key in rows}, key=float)
    for axes, text in zip(panels, TEXTS, strict=True):
        for row in ROWS:
            points = [(float(r), rows[f"{r} {row}"][text]["times_dense"]) for r in ratios if f"{r} {row}" in rows]
            if points:
                axes.plot(*zip(*points, strict=True), "-o", label=row)
        axes.set_yscale("log")
        axes.set_yticks([1, 1.2, 1.5, 2, 3, 5, 8], ["1 x", "1.2 x", "1.5 x", "2 x", "3 x", "5 x", "8 x"])
        axes.set_xticks([float(r) for r in ratios], [f"{float(r):.0%}" for r in ratios])
        axes.minorticks_off()
        axes.set_title(text, loc="left")
        axes.set_xlabel("parameters removed")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("perplexity, multiple of the original's")
    panels[0].legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / f"{name}.png", dpi=150)


def budget(options: argparse.Namespace) -> tuple[str, float]:
    """Return the unit of a recovery's length, and how many."""
    return ("minutes", options.recover) if options.epochs is None else ("epochs", options.epochs)


def steps_of(source: Path, folder: Path, ratio: str, options: argparse.Namespace) -> dict[str, tuple[object, ...]]:
    """Make the plan for a ratio, and return the verb that makes the model of every row."""
    text = ("--windows", options.windows, "--length", 2048, "--calibration", options.text)
    kept, device = ("--dtype", "float32", "--work", options.work), ("--device", options.device)
    plan = folder / f"{ratio}.json"
    verb(plan, "plan", source, "--ratio", ratio, *text, *kept, "--calibration-dtype", "float32", *device)
    compress = ("compress", source, "--plan", plan, *text, *kept, *device)
    unit, amount = budget(options)
    recover = ("--calibration", options.text, f"--{unit}", amount, *device)
    return {
        "plan": (*compress, "--refit", "never"),
        "refitted": compress,
        "refined": (*compress, "--refine", options.refine),
        "refitted and recovered": ("recover", place(folder, ratio, "refitted"), *recover),
        "refined and recovered": ("recover", place(folder, ratio, "refined"), *recover),
    }


def measured(results: dict[str, Any], spent: Any, key: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a row is worth, and what it cost, now or when it was made."""
    small, tokenizer = load(model, dtype="float32", device=options.device)
    nats = window_nats(small, tokenizer, options.evaluation_windows)
    unit, amount = budget(options)
    return {
        "cost": spent or results["rows"].get(key, {}).get("cost"),
        "asked": {"refine": options.refine, unit: amount, "threads": torch.get_num_threads()},
        **against(nats, results["dense"]),
        "texts": samples(small, tokenizer),
        "window_nats": nats,
    }


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--refine", type=float, default=20)
    parser.add_argument("--recover", type=float, default=30)
    parser.add_argument("--epochs", type=float, help="of the recovery, instead of minutes")
    parser.add_argument("--text", default=VALID_TEXT, help="to calibrate and train on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="of the results, after the model's")
    parser.add_argument("--evaluation-windows", type=int, default=16)
    parser.add_argument("--task-limit", type=int, default=0)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "repair")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    return parser.parse_args()


def begun(name: str, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the results so far, if they are of this setting, with those of the original."""
    results = read(name)
    setting = {
        "windows": options.windows,
        "evaluation_windows": options.evaluation_windows,
        "text": options.text.replace(f"{DATA}/", ""),
    }
    if {key: results.get(key) for key in setting} != setting:
        results = {"rows": {}}
    if "dense" not in results:
        model, tokenizer = load(source, dtype="float32", device=options.device)
        results["dense"] = window_nats(model, tokenizer, options.evaluation_windows)
        results["dense_texts"] = samples(model, tokenizer)
    results |= {"machine": machine(), **setting}
    save(name, results)
    return results


def main() -> None:
    options = arguments()
    need_data()
    source, chosen, name = MODELS[options.model](), options.rows.split(","), f"repair-{options.model}"
    if options.name:
        name, options.output = f"{name}-{options.name}", options.output / options.name
    results, folder, ratios = begun(name, source, options), options.output / options.model, options.ratios.split(",")
    for ratio in ratios:
        steps = steps_of(source, folder, ratio, options)
        for row in (row for row in ROWS if row in chosen):
            key, model = f"{ratio} {row}", place(folder, ratio, row)
            spent = verb(model, *steps[row])
            if key in results["rows"] and spent is None:
                continue
            results["rows"][key] = found = measured(results, spent, key, model, options)
            save(name, results)
            print(key, {key: found[key] for key in (*TEXTS, "cost")}, flush=True)
    if options.task_limit:
        scored = results.setdefault("tasks", {})
        asked = {"original": source} | {f"{r} {row}": place(folder, r, row) for r in ratios for row in chosen}
        for key, model in asked.items():
            if scored.get(key, {}).get("examples_per_task") != options.task_limit:
                scored[key] = task_scores(model, options.task_limit)
                print(key, scored[key], flush=True)
                save(name, results)
    draw(name, results["rows"])


if __name__ == "__main__":
    main()
