"""Several processes at one compression: the same plan and factors, and what it saves.

``python benchmarks/processes.py`` (ten minutes on two cores). The attention of SmolLM2-135M is compressed at 30 % by
one process with all cores, by two and by four. Ranks must be equal, products of factors are compared, and the seconds
are multiples of those of one process. The text is short: this is about agreement and division, not about quality.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from basis_sharing import load
from basis_sharing.results.compression import RESULT_FILE, CompressionResult, EntryReport
from basis_sharing.runtime.layers_basis_sharing import kind_of
from common import machine, save, smollm2

PROCESSES = (1, 2, 4)
SETTINGS = ["--ratio", "0.3", "--windows", "4", "--length", "512", "--roles", "q,k,v,o", "--no-sharing"]


def compress(processes: int, output: Path) -> float:
    """Compress the real model in several processes; return the seconds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "basis_sharing", "compress", str(smollm2()), "-o", str(output), "--device", "cpu"]
    threads = str(max(1, cores // processes))
    start = time.monotonic()
    subprocess.run([*command, *SETTINGS], check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
    return time.monotonic() - start


def ranks(entries: Sequence[EntryReport]) -> list[tuple[tuple[str, ...], str]]:
    """Return the members and the rank of every entry."""
    return [(report.members, report.entry.label) for report in entries]


def difference(ours: Any, theirs: Any, entries: Sequence[EntryReport]) -> float:
    """Return the largest relative difference between what projections of two models multiply by."""
    found = [0.0]
    for entry in (report.entry for report in entries):
        for name in entry.members:
            W, other = (kind_of(entry).dense(model.get_submodule(name))["weight"] for model in (ours, theirs))
            found.append((torch.linalg.norm(W - other) / torch.linalg.norm(W)).item())
    return max(found)


def main() -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        one: Any = None
        first: tuple[EntryReport, ...] = ()
        for processes in PROCESSES:
            output = Path(name) / str(processes)
            seconds = compress(processes, output)
            entries = CompressionResult.read(output / RESULT_FILE).entries
            model, _ = load(output, device="cpu")
            if one is None:
                one, first = model, entries
            row = {
                "processes": processes,
                "seconds": seconds,
                "groups": len(entries),
                "largest_relative_difference": difference(one, model, first),
                "times_one_process": seconds / (rows[0]["seconds"] if rows else seconds),
                "same_ranks": ranks(entries) == ranks(first),
            }
            rows.append(row)
            print(row, flush=True)
    save("processes", {"machine": machine(), "settings": SETTINGS, "rows": rows})


if __name__ == "__main__":
    main()
