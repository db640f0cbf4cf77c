"""Several processes at one compression: the same plan and factors, and what it saves.

``python benchmarks/processes.py`` (ten minutes on two cores). The attention of SmolLM2-135M is compressed at 30 % by
one process with all cores, by two and by four. Processes must be equal, products of factors are compared, and the seconds
are multiples of those of one process. The text is short: this is about agreement and division, not about quality.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from basis_sharing.checkpoint.loading import load_any
from basis_sharing.results.compression import RESULT_FILE
from basis_sharing.runtime.modeling_basis_sharing import FactorizedLinear
from basis_sharing.runtime.surgery import product_of
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


def main() -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for processes in PROCESSES:
            output = Path(name) / str(processes)
            seconds = compress(processes, output)
            groups = json.loads((output / RESULT_FILE).read_text(encoding="utf-8"))["groups"]
            rows.append({"processes": processes, "seconds": seconds, "groups": groups})
        one = load_any(Path(name) / "1")[0]
        for row in rows:
            other = load_any(Path(name) / str(row["processes"]))[0]
            differences = [0.0]
            for path, module in one.named_modules():
                if isinstance(module, FactorizedLinear):
                    ours, theirs = product_of(one, path), product_of(other, path)
                    differences.append((torch.linalg.norm(ours - theirs) / torch.linalg.norm(ours)).item())
            row["largest_relative_difference"] = max(differences)
            row["times_one_process"] = row["seconds"] / rows[0]["seconds"]
            row["same_ranks"] = [(g["members"], g["rank"]) for g in row["groups"]] == [
                (g["members"], g["rank"]) for g in rows[0]["groups"]
            ]
    for row in rows:
        row["groups"] = len(row["groups"])
        print(row)
    save("processes", {"machine": machine(), "settings": SETTINGS, "rows": rows})


if __name__ == "__main__":
    main()
