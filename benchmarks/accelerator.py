"""What a graphics card gives: ``compress`` by stage, decomposition against the authors' way, and served speed in bf16.

``python benchmarks/accelerator.py [--layers N]`` (about five minutes on an H100; needs CUDA and about 2 GB of disk per
four layers). A random-weight model with the widths of LLaMA-7B is written to the disk in bf16, and streamed from there:
blocks visit the card one at a time. It is compressed by ``auto`` at two ratios, the second with the measurements of the
first; ``--layers 32`` is the whole model. Decompositions of both kinds run on the card on groups of that size, and lose
the same energy. Speeds are ``bench``'s, multiples of the dense model's in turns with it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from basis_sharing import bench, compress
from basis_sharing.linalg.truncation import Weighted, truncate
from basis_sharing.linalg.whitening import cholesky_whitening
from basis_sharing.run.progress import Progress
from common import VALID_TEXT, machine, random_model, save

RATIOS = (0.2, 0.5)
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


class Stages:
    """Receives progress, and tells how long every stage took and what it had on the card at most.

    An event comes when a unit of work is done: the time since the one before is its stage's.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._since = self._first = time.monotonic()
        torch.cuda.reset_peak_memory_stats()

    def __call__(self, event: Progress) -> None:
        """Book what has passed since the last event."""
        self._book(event.stage)

    def _book(self, stage: str) -> None:
        now, peak = time.monotonic(), torch.cuda.max_memory_allocated()
        row = self.found.setdefault(stage, {"seconds": 0.0, "peak_gib": 0.0})
        row["seconds"] += now - self._since
        row["peak_gib"] = max(row["peak_gib"], peak / 2**30)
        self._since = now
        torch.cuda.reset_peak_memory_stats()

    def total(self) -> dict[str, Any]:
        """Return the stages and the seconds of all of them; what comes after the last event is writing."""
        self._book("writing")
        return {"seconds": time.monotonic() - self._first, "stages": self.found}


def compressed(source: Path, output: Path, ratio: float, windows: int, work: Path) -> dict[str, Any]:
    """Compress, and return the stages and what came of it."""
    stages = Stages()
    _, result = compress(
        str(source),
        ratio,
        output=output,
        device="cuda",
        work=work,
        windows=windows,
        length=2048,
        calibration=VALID_TEXT,
        progress=stages,
    )
    return {**stages.total(), "ratio": result.ratio_reached, "groups": len(result.entries)}


def synchronized(action: Any, repeats: int = 3) -> tuple[float, Any]:
    """Return the median seconds of an action on the card after a warm-up, and what it returns."""
    times, value = [], action()
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        value = action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2], value


def decompositions() -> list[dict[str, Any]]:
    """Time our decomposition and the authors' (Cholesky, inverse, SVD of the wide S W in fp64) of 7B-sized groups."""
    found = []
    generator = torch.Generator("cuda").manual_seed(0)
    for name, d_in, d_out, layers in (
        ("q", 4096, 4096, 1),
        ("down", 11008, 4096, 1),
        ("q of two layers", 4096, 4096, 2),
    ):

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64, device="cuda", generator=generator)

        inputs = random(2 * d_in, d_in) * torch.logspace(0, -2, d_in, dtype=torch.float64, device="cuda")
        G, weights = inputs.T @ inputs, [random(d_in, d_out) for _ in range(layers)]
        del inputs

        def ours(G: torch.Tensor = G, weights: list[torch.Tensor] = weights) -> float:
            S = cholesky_whitening(G)
            return truncate([Weighted(W, S) for W in weights]).losses[1000].item()

        def theirs(G: torch.Tensor = G, weights: list[torch.Tensor] = weights) -> float:
            S = torch.linalg.cholesky(G).T
            inverse = torch.linalg.inv(S)
            U, sigma, Vt = torch.linalg.svd(S @ torch.cat(weights, dim=1), full_matrices=False)
            basis = inverse @ (U * sigma)
            assert basis.shape[1] == len(Vt)
            return float(sigma[1000:].square().sum())

        fast, lost = synchronized(ours)
        slow, same = synchronized(theirs, repeats=1)
        found.append(
            {
                "group": name,
                "seconds": fast,
                "wide_svd_seconds": slow,
                "speedup": slow / fast,
                "difference_of_lost_energy": lost / same - 1,
            }
        )
        print(found[-1], flush=True)
    return found


def speeds(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the speeds of models against the first one, in bf16."""
    result = bench(
        folders, prompt_tokens=1024, new_tokens=32, batch_sizes=(1, 16), memory=False, dtype="bfloat16", device="cuda"
    )
    rows = [
        {
            "model": model.label,
            "workload": timing.workload,
            "batch": timing.batch,
            "seconds": timing.time.median,
            "times_dense": timing.speed.median,
            "ideal": timing.ideal_speed,
        }
        for model in result.models
        for timing in model.timings
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--windows", type=int, default=16)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: this benchmark needs a CUDA device.")
    result: dict[str, Any] = {
        "machine": machine(),
        "layers": options.layers,
        "windows": options.windows,
        "compress": {},
    }
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        random_model(room / "dense", {**SHAPE, "num_hidden_layers": options.layers}, dtype="bfloat16", device="cuda")
        for ratio in RATIOS:
            told = compressed(room / "dense", room / f"{ratio}", ratio, options.windows, room / "work")
            result["compress"][str(ratio)] = told
            print(ratio, told, flush=True)
            save("accelerator", result)
        result["speeds"] = speeds([room / "dense", *(room / f"{ratio}" for ratio in RATIOS)])
        save("accelerator", result)
    result["decompositions"] = decompositions()
    save("accelerator", result)


if __name__ == "__main__":
    main()
