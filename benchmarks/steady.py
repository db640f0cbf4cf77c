"""How far apart the speeds of ``bench`` are when it is repeated, once with other work on the machine.

``python benchmarks/steady.py FOLDER...`` (about a quarter of an hour on two cores for two folders) runs ``bench`` three
times on SmolLM2-135M and compressions of it, eagerly and in fp32; beside the second run a process multiplies matrices
all the time.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from basis_sharing.results.benchmark import BenchmarkResult
from common import cost, machine, save, smollm2

DISTURBANCE = "import torch; torch.set_num_threads(1); x = torch.randn(512, 512)\nwhile True: x @ x"


@contextmanager
def other_work(wanted: bool) -> Iterator[None]:
    """Keep one processor busy for as long as the context, if that is wanted."""
    process = subprocess.Popen([sys.executable, "-c", DISTURBANCE]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def run(models: list[Path], file: Path, options: argparse.Namespace) -> BenchmarkResult:
    """Run ``bench`` once."""
    amount = ("--prompt-tokens", options.prompt_tokens, "--new-tokens", options.new_tokens, "--batch-sizes", "1,4")
    eager = ("--no-compile", "--threads", options.threads, "--no-memory")
    cost("bench", *models, "--dtype", "float32", *amount, *eager, "-o", file)
    return BenchmarkResult.read(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    models = [smollm2(), *options.folders]
    speeds: dict[str, list[float]] = {}
    repeats, uncertainties = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, busy in enumerate((False, True, False)):
            with other_work(busy):
                result = run(models, Path(folder) / f"{number}.json", options)
            timings = [(model.label, timing) for model in result.models[1:] for timing in model.timings]
            for label, timing in timings:
                key = f"{label}, {timing.workload}, batch {timing.batch}"
                speeds.setdefault(key, []).append(timing.speed.median)
            repeats.append(result.repeats)
            uncertainties.append(max(timing.uncertainty or 0.0 for _, timing in timings))
    largest = max(max(found) / min(found) - 1 for found in speeds.values())
    save(
        "steady",
        {
            "machine": machine(),
            "threads": options.threads,
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "repeats": repeats,
            "largest_uncertainty": uncertainties,
            "times_original": speeds,
            "largest_spread": largest,
        },
    )
    print(f"the speeds of the three runs are at most {largest:.1%} apart")


if __name__ == "__main__":
    main()
