"""Hold a refactoring to its word: fingerprints of the weights, plans and forecasts that every method gives.

``python benchmarks/unchanged.py record FILE`` before the change, ``python benchmarks/unchanged.py compare FILE`` after
it; ``--real``: SmolLM2-135M instead of the pico models. A fingerprint is the sha256 of names, shapes, dtypes and bytes
of all tensors, of what a plan says of every group, or of the points of a forecast; files around the weights may change
their form. ``compare`` prints every case that differs and exits with 1 where there is one.

The minutes of ``refine`` are told to it by a clock that ticks once per look, so that both runs train alike.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import basis_sharing
import basis_sharing.errors
from common import ROOT, smollm2

sys.path.insert(0, str(ROOT / "tests"))
from pico import PICO, TEXT, save_pico

SETTINGS: dict[str, dict[str, Any]] = {
    "auto": {"ratio": 0.3},
    "auto without refit": {"ratio": 0.3, "refit": "never"},
    "auto without gradients": {"ratio": 0.3, "gradients": False, "refit": "never"},
    "auto without sharing": {"ratio": 0.3, "across_depth": False, "refit": "never"},
    "auto without joint roles": {"ratio": 0.3, "across_roles": False, "refit": "never"},
    "auto, multiples of 4": {"ratio": 0.4, "rank_multiple": 4, "refit": "never"},
    "auto, at most 60 % of the operations": {"max_flops": 0.6, "refit": "never"},
    "auto, at most 80 % of the bytes": {"max_bytes": 0.8, "refit": "never"},
    "auto, at most 80 % of the parameters": {"max_parameters": 0.8, "refit": "never"},
    "auto, plain": {"ratio": 0.3, "form": "plain", "refit": "never"},
    "auto, refined": {"ratio": 0.3, "refine": 1.0},
    "auto, at most 20 % more perplexity": {"max_perplexity_increase": 0.2, "evaluation_windows": 4},
    "svd": {"ratio": 0.3, "method": "svd"},
    "fwsvd": {"ratio": 0.3, "method": "fwsvd"},
    "asvd": {"ratio": 0.3, "method": "asvd"},
    "svd-llm": {"ratio": 0.3, "method": "svd-llm"},
    "basis-sharing": {"ratio": 0.3, "method": "basis-sharing"},
    "basis-sharing, refitted": {"ratio": 0.4, "method": "basis-sharing"},
    "basis-sharing, pivoted": {"ratio": 0.3, "method": "basis-sharing", "form": "pivoted"},
}
REAL = {method: {"method": method} for method in ("svd", "svd-llm", "basis-sharing")}


def of_weights(folder: Path) -> str:
    """Return a fingerprint of all tensors of a folder."""
    tensors: dict[str, tuple[Any, bytes]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                tensors[name] = (f"{tensor.dtype} {tuple(tensor.shape)}", tensor.view(torch.uint8).numpy().tobytes())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        about, content = tensors[name]
        digest.update(f"{name} {about} ".encode() + content)
    return digest.hexdigest()


def of_plan(plan: Any) -> str:
    """Return a fingerprint of what a plan says of every group, and of what it expects."""
    groups = getattr(plan, "entries", None) or plan.groups
    told = [[list(g.members), g.rank, g.form, None if g.loss is None else repr(g.loss)] for g in groups]
    expected = None if plan.prediction is None else repr(plan.prediction.loss)
    return hashlib.sha256(json.dumps([told, expected]).encode()).hexdigest()


def of_forecast(forecast: Any) -> str:
    """Return a fingerprint of the points of a forecast."""
    told = [[p.method, repr(p.ratio), p.parameters, p.multiplications, repr(p.loss)] for p in forecast.points]
    told.append([of_plan(forecast.plan), repr(forecast.unrounded_loss), repr(forecast.unshared_loss)])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def fixed_clock() -> None:
    """Let the timing of a training see a hundredth of a second per look, whatever the machine does."""
    true, ticks = time.monotonic, 0

    def clock() -> float:
        nonlocal ticks
        if sys._getframe(1).f_code.co_name not in ("settle", "timed_schedule"):  # its name in 0.1.0, and now
            return true()
        ticks += 1
        return ticks / 100

    time.monotonic = clock


def compressed(model: Path, settings: dict[str, Any], root: Path) -> dict[str, str]:
    """Compress a model, and return the fingerprints of its plan and its weights."""
    plans: list[Any] = []
    output = root / "out"
    basis_sharing.compress(model, output=output, overwrite=True, on_plan=plans.append, **settings)
    return {"plan": of_plan(plans[-1]), "weights": of_weights(output)}


def pico_cases(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every case of the pico models."""
    torch.set_num_threads(1)
    (root / "text.txt").write_text(TEXT * 4)
    common: dict[str, Any] = {"calibration": str(root / "text.txt"), "windows": 24, "length": 64}
    common |= {"calibration_dtype": "float32", "dtype": "float32"}
    for name in PICO:
        model = save_pico(name, root / name)
        skeleton = PICO[name]()
        parameters = sum(p.numel() for p in skeleton.parameters())
        head = skeleton.get_output_embeddings().weight.numel()
        whole = {"max_parameters": parameters, "max_bytes": 4 * parameters, "max_flops": 2 * parameters + 2 * head}
        for case, given in SETTINGS.items():
            settings = {key: int(value * whole[key]) if key in whole else value for key, value in given.items()}
            if "evaluation_windows" in settings:
                settings["evaluate"] = (str(root / "text.txt"),)
            try:
                yield f"{name}: {case}", compressed(model, {**common, **settings}, root)
            except basis_sharing.errors.BasisSharingError as error:
                yield f"{name}: {case}", {"error": type(error).__name__}
        forecast = getattr(basis_sharing, "plan_model", None) or basis_sharing.plan
        yield f"{name}: forecast", {"points": of_forecast(forecast(model, ratio=0.3, **common))}


def real_cases(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every case of the real model."""
    torch.set_num_threads(2)
    common: dict[str, Any] = {"ratio": 0.2, "windows": 4, "length": 512, "work": root / "work"}
    common |= {"calibration_dtype": "float32", "dtype": "float32"}
    for case, settings in REAL.items():
        yield f"SmolLM2: {case}", compressed(smollm2(), {**common, **settings}, root)


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--real", action="store_true", help="only SmolLM2-135M, instead of the pico models")
    arguments = parser.parse_args()
    known: dict[str, dict[str, str]] = json.loads(arguments.file.read_text()) if arguments.file.is_file() else {}
    fixed_clock()
    differing, cases = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name, found in (real_cases if arguments.real else pico_cases)(Path(folder)):
            cases += 1
            if arguments.what == "record":
                known[name] = found
                arguments.file.write_text(json.dumps(known, indent=1) + "\n")
            elif known.get(name) != found:
                differing.append(name)
                parts = [part for part in found if known.get(name, {}).get(part) != found[part]]
                print(f"differs: {name} ({', '.join(parts)})", flush=True)
    print(f"{cases} cases, {len(differing)} differ")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
