"""Memory of ``compress``: flat in the number of layers, and a model larger than its memory.

``python benchmarks/memory.py`` (half an hour on two cores; Linux). First models of 8, 16, 32 and 64 layers of one width
are compressed by ``auto`` under one ``--max-memory``, and the peak of the memory that the system cannot take back
(``RssAnon``) is compared. Then a random model of 1.5 billion parameters, 6 GB in fp32, is compressed in a control group
of 4 GiB, where the kernel counts pages of files as well and kills what takes more (needs root). To spare time only q, k
and v are compressed in the first part, only q in the second; moments are measured of all projections in both. The first
runs in fp32: in bf16 oneDNN keeps a compiled kernel for every rank, one or two MiB per layer of this size.
``--part small`` or ``--part large`` does one of the two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import machine, random_model, read, save

LAYERS = (8, 16, 32, 64)
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 6400,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 24,
}
LIMIT = 4 * 2**30
TEXT = "The quick brown fox jumps over the lazy dog, and so does every other animal. "
CHILD = """
import json, sys, threading, time
from basis_sharing import compress
from basis_sharing.run.machine import taken_memory

peak, stage, stages, running = [0], ["loading"], {}, [True]

def watch():
    while running[0]:
        stages[stage[0]] = max(stages.get(stage[0], 0), taken_memory())
        time.sleep(0.01)

thread = threading.Thread(target=watch)
thread.start()
settings = json.loads(sys.argv[1])
_, result = compress(settings.pop("model"), progress=lambda event: stage.__setitem__(0, event.stage), **settings)
running[0] = False
thread.join()
print(json.dumps({"stages": stages, "ratio": result.ratio_reached}))
"""


def make_model(folder: Path, shape: dict[str, int], vocabulary: int) -> int:
    """Write a random LLaMA in fp32; return the bytes of its weights."""
    random_model(folder, {**shape, "vocab_size": vocabulary})
    files = list(folder.glob("*.safetensors"))
    for path in files:
        forget_pages(path)
    return sum(path.stat().st_size for path in files)


def forget_pages(path: Path) -> None:
    """Let the system drop a file's pages: those that were there before a control group are not charged to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """Yield the file to write a process into, for a group that may take ``limit`` bytes."""
    first, unified = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group = (first if first.is_dir() else unified) / f"basis-sharing-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")).write_text(str(limit))
        yield group / "cgroup.procs"
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def compressed(settings: dict[str, Any], group: Path | None = None) -> dict[str, Any]:
    """Compress in a process of its own; return its peak of memory by stage, and the seconds it took."""

    def enter() -> None:
        if group is not None:
            group.write_text(str(os.getpid()))

    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(settings)], stdout=subprocess.PIPE, text=True, preexec_fn=enter
    )
    if done.returncode:
        raise SystemExit(f"the compression ended with {done.returncode}")
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - start}


def flat(root: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Compress models of several depths, and compare their peaks."""
    folders = {"model": str(root / "model"), "output": str(root / "out"), "overwrite": True}
    budget = {"windows": 16, "length": 128, "max_memory": "800MiB", "roles": "q,k,v", "calibration_dtype": "float32"}
    rows = []
    for layers in LAYERS:
        size = make_model(root / "model", {**SMALL, "num_hidden_layers": layers}, 1024)
        row = compressed({"ratio": 0.3, **folders, **budget, **common})
        row = {"layers": layers, "bytes": size, "peak": max(row["stages"].values()), **row}
        rows.append(row)
        print(f"{layers} layers, {size / 2**20:,.0f} MiB: peak {row['peak'] / 2**20:,.0f} MiB", flush=True)
    peaks = [row["peak"] for row in rows]
    spread = max(peaks) / min(peaks) - 1
    print(f"largest peak {spread:.1%} above the smallest", flush=True)
    return {"layers": rows, "spread": spread}


def larger_than_memory(root: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Compress a model in a control group that has less memory than its weights take."""
    size = make_model(root / "large", LARGE, 32000)
    folders = {"model": str(root / "large"), "output": str(root / "small")}
    budget = {"windows": 4, "length": 256, "max_memory": "4GiB", "roles": "q", "across_depth": False}
    with control_group(LIMIT) as group:
        row = compressed({"ratio": 0.3, **folders, **budget, **common}, group)
    peak = max(row["stages"].values())
    print(f"{size / 2**30:.1f} GiB within {LIMIT / 2**30:.0f} GiB: peak {peak / 2**20:,.0f} MiB", flush=True)
    return {"large": {"bytes": size, "limit": LIMIT, "peak": peak, **row}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("small", "large"), default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the models are made (30 GB)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        (root / "text.txt").write_text(4000 * TEXT)
        common = {"calibration": str(root / "text.txt"), "device": "cpu"}
        found: dict[str, Any] = {"machine": machine()}
        if options.part != "large":
            found |= flat(root, common)
        if options.part != "small":
            found |= larger_than_memory(root, common)
    save("memory", {**read("memory"), **found})


if __name__ == "__main__":
    main()
