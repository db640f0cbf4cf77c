"""How fast vLLM serves compressed folders, against the dense model in the same engine.

``.venv-vllm/bin/python benchmarks/serving.py FOLDER...`` after ``make vllm`` (minutes on two cores, more with
``--compiled``); the folders are compressions of SmolLM2-135M. It runs ``bench --engine vllm`` in fp32 on prompts of 128
tokens, at batch 1 and 8. ``--compiled`` lets vLLM compile the models as it does by default; without it they run
eagerly.
"""

import argparse
import tempfile
from pathlib import Path

from basis_sharing.results.benchmark import BenchmarkResult
from common import cost, machine, read, save, smollm2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    amount = ("--prompt-tokens", 128, "--new-tokens", 32, "--repeats", options.repeats, "--precision", "off")
    execution = ("--engine", "vllm", "--compile" if options.compiled else "--no-compile", "--threads", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serving.json"
        cost("bench", smollm2(), *options.folders, "--dtype", "float32", *amount, *execution, "-o", file)
        result = BenchmarkResult.read(file)
    speeds = {
        model.label: {f"{timing.workload}, batch {timing.batch}": timing.speed.model_dump() for timing in model.timings}
        for model in result.models[1:]
    }
    name = f"{'compiled' if options.compiled else 'eager'}, threads: {options.threads}"
    run = {"machine": machine(), "versions": result.versions, "times_as_fast_as_dense": speeds}
    save("serving", {**read("serving"), name: run})


if __name__ == "__main__":
    main()
