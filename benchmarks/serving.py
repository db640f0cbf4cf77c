"""How fast vLLM serves compressed folders, against the dense model in the same engine.

``.venv-vllm/bin/python benchmarks/serving.py FOLDER...`` after ``make vllm`` (about nine minutes on two cores, more
with ``--compiled``); the folders are compressions of SmolLM2-135M. Every model has an engine of its own, in fp32, all
of them alive at the same time; they take turns batch by batch, and speeds are quotients within a round.
``--compiled`` lets vLLM compile the models as it does by default; without it they run eagerly. On a busy machine give
fewer ``--threads`` than processors: a compressed model has more and smaller products, and threads may wait for each
other after every one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import torch

from basis_sharing import load
from common import machine, read, save, smollm2

PROMPTS, PROMPT_TOKENS = 8, 128


def answer(folder: str, compiled: bool) -> None:
    """Run a batch of prompts for every number of new tokens on standard input and print the seconds it took."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=PROMPTS,
        enforce_eager=not compiled,
        enable_prefix_caching=False,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
    asked = [{"prompt_token_ids": prompt} for prompt in ids]
    for line in sys.stdin:
        start = time.perf_counter()
        engine.generate(asked, SamplingParams(temperature=0, max_tokens=int(line), ignore_eos=True), use_tqdm=False)
        print("SECONDS", time.perf_counter() - start, flush=True)


class Engine:
    """vLLM with one model, in a process of its own."""

    def __init__(self, folder: str, threads: int, compiled: bool, log: Path) -> None:
        command = [sys.executable, __file__, "--engine", folder, *(["--compiled"] if compiled else [])]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
        self.folder, self.log = folder, log
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds(self, new_tokens: int) -> float:
        """Return how long the batch of prompts takes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.write(f"{new_tokens}\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("SECONDS "):
                return float(line.removeprefix("SECONDS "))
        sys.exit(f"error: vLLM failed on {self.folder}:\n{self.log.read_text(errors='replace')[-2000:]}")

    def turn(self, new_tokens: int) -> tuple[float, float]:
        """Return the seconds of a prefill and of one decoding step, both of the whole batch."""
        first = self.seconds(1)
        return first, (self.seconds(1 + new_tokens) - first) / new_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        answer(options.engine, options.compiled)
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as engines:
        dense = Path(name) / "dense"
        for part in load(smollm2(), dtype="float32", device="cpu"):
            part.save_pretrained(dense)
        running = []
        for index, folder in enumerate([dense, *options.folders]):
            engine = Engine(str(folder), options.threads, options.compiled, Path(name) / f"{index}.log")
            running.append(engines.enter_context(engine))
            engine.turn(options.new_tokens)  # warm, and one start at a time
            print(f"{folder.name}: ready", flush=True)
        rounds = [[engine.turn(options.new_tokens) for engine in running] for _ in range(options.rounds)]
    rows = {}
    for index, folder in enumerate(options.folders, start=1):
        prefill, decode = ([turn[0][kind] / turn[index][kind] for turn in rounds] for kind in (0, 1))
        rows[folder.name] = {"prefill": told(prefill), "decode": told(decode)}
        print(folder.name, json.dumps(rows[folder.name]))
    run = {
        "machine": {**machine(), "threads": options.threads, "vllm": version("vllm-cpu")},
        "load_average": os.getloadavg()[1],
        "prompts": PROMPTS,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": options.new_tokens,
        "times_as_fast_as_dense": rows,
    }
    name = f"{'compiled' if options.compiled else 'eager'}, threads: {options.threads}"
    save("serving", {**read("serving"), name: run})


def told(quotients: list[float]) -> dict[str, float | list[float]]:
    """Return the median of the rounds, the middle half, and every round."""
    low, median, high = statistics.quantiles(quotients, n=4)
    return {"median": median, "middle_half": [low, high], "rounds": quotients}


if __name__ == "__main__":
    main()
