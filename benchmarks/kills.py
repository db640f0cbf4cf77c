"""Kill a compression at random moments, start it again, and compare the bytes with an uninterrupted run.

``python benchmarks/kills.py`` (five minutes on two cores). A small random model is compressed by ``auto`` in a process
of its own, which gets SIGKILL at a moment drawn uniformly over the run; a second process then goes on. Needs no data.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import basis_sharing
from basis_sharing.run.progress import Progress
from common import ROOT, machine, save

sys.path.insert(0, str(ROOT / "tests"))
from pico import TEXT, build, pico_tokenizer

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def start(run: Callable[[Callable[[Progress], None]], object]) -> tuple[int, int]:
    """Run something in a process of its own; return its number and a pipe that it writes the names of stages to.

    Nothing has been computed before the fork, so that no thread is missing after it.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:

        def tell(event: Progress) -> None:
            os.write(writing, f"{event.stage}\n".encode())

        run(tell)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def finish(child: int, reading: int, seconds: float | None = None) -> tuple[int, str]:
    """Wait for a process, or kill it after some seconds; return its exit code and the last stage it was in."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        stages = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), stages[-1] if stages else "loading"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        text = root / "text.txt"
        text.write_text(5 * TEXT)

        def make(_: Callable[[Progress], None]) -> None:
            build("llama", **SHAPE).save_pretrained(root / "model")
            pico_tokenizer().save_pretrained(root / "model")

        def compress(output: Path) -> Callable[[Callable[[Progress], None]], object]:
            few: dict[str, Any] = {"calibration": str(text), "windows": 16, "length": 128}
            return lambda progress: basis_sharing.compress(root / "model", 0.3, output=output, progress=progress, **few)

        def weights(output: Path) -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in output.glob("*.safetensors")}

        assert finish(*start(make))[0] == 0
        begun = time.monotonic()
        assert finish(*start(compress(root / "whole")))[0] == 0
        whole = time.monotonic() - begun
        killed, identical, left, times = Counter[str](), 0, 0, []
        while sum(killed.values()) < options.kills:
            output = root / "killed"
            code, stage = finish(*start(compress(output)), seconds=chance.uniform(0, whole))
            if code == -signal.SIGKILL and not output.exists():  # not when it was done before
                killed[stage] += 1
                begun = time.monotonic()
                assert finish(*start(compress(output)))[0] == 0
                times.append(time.monotonic() - begun)
                identical += weights(output) == weights(root / "whole")
                left += output.with_name(f"{output.name}.work").exists()
                print(f"killed while {stage}; identical: {identical} of {sum(killed.values())}", flush=True)
            shutil.rmtree(output)
            shutil.rmtree(output.with_name(f"{output.name}.work"), ignore_errors=True)
    result = {
        "machine": machine(),
        "kills": options.kills,
        "identical": identical,
        "work_folders_left": left,
        "killed_while": killed,
        "time_of_the_second_run": sum(times) / len(times) / whole,
    }
    print(result)
    save("kills", result)
    if identical < options.kills or left:
        sys.exit("error: not every run ended with the same bytes and without a work folder.")


if __name__ == "__main__":
    main()
