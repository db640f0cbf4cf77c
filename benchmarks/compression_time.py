"""How long ``compress`` takes by phase: calibration, planning, factorization; and how long for a second ratio.

``python benchmarks/compression_time.py [--layers N] [--device cuda]``: a model with random weights and the shape of
one of 0.5 B (24 layers, hidden 896, intermediate 4864, 14 heads, 2 key-value heads), in bf16, is compressed by ``auto``
with 8 windows of 2048, and once more at another ratio with the measurements of the first. ``--shape 7b``: the widths of
LLaMA-7B. Times are processor seconds and wall seconds, and wall seconds as multiples of those of the calibration; on a
shared machine only processor seconds can be compared. The whole model takes up to 45 minutes on two cores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from basis_sharing import compress
from basis_sharing.run.progress import Progress
from common import machine, random_model, read, save

SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 24,
        "vocab_size": 32000,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    },
}
RATIOS = (0.2, 0.4)
PHASES = {
    "recording block inputs": "calibration",
    "measuring the loss": "calibration",
    "measuring gradients": "calibration",
    "measuring candidates": "planning",
    "measuring shared candidates": "planning, shared",
    "factorizing": "factorization",
}


class Phases:
    """Receives progress, and books the time since the last event to the phase of each event's stage."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._wall, self._processor = time.monotonic(), time.process_time()

    def __call__(self, event: Progress) -> None:
        """Book the time since the last event."""
        self.book(PHASES.get(event.stage, event.stage))

    def book(self, phase: str) -> None:
        """Book the time since the last event to a phase."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, processor = time.monotonic(), time.process_time()
        row = self.found.setdefault(phase, {"wall_seconds": 0.0, "processor_seconds": 0.0})
        row["wall_seconds"] += wall - self._wall
        row["processor_seconds"] += processor - self._processor
        self._wall, self._processor = wall, processor


def compressed(model: Path, room: Path, ratio: float, windows: int, device: str) -> dict[str, Any]:
    """Compress, and return the seconds of every phase."""
    phases = Phases()
    compress(
        str(model),
        ratio,
        output=room / f"out-{ratio}",
        work=room / "work",
        calibration=str(room / "text.txt"),
        windows=windows,
        length=2048,
        device=device,
        progress=phases,
    )
    phases.book("the rest")
    base = phases.found.get("calibration")
    for name, row in phases.found.items():
        if base is not None:
            row["times_calibration"] = row["wall_seconds"] / base["wall_seconds"]
        print(f"{ratio:.0%} {name:36} {row['processor_seconds']:8.1f} s of processors {row['wall_seconds']:8.1f} s")
    return phases.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    layers = options.layers or shape["num_hidden_layers"]
    result = read("compression-time")
    row: dict[str, Any] = {"machine": machine(), "layers": layers, "windows": options.windows, "ratios": {}}
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        random_model(room / "model", {**shape, "num_hidden_layers": layers}, dtype="bfloat16", device=options.device)
        words = torch.randint(97, 123, (options.windows * 2600,), generator=torch.Generator().manual_seed(0))
        (room / "text.txt").write_text("".join(map(chr, words.tolist())), encoding="utf-8")
        for ratio in RATIOS:
            row["ratios"][str(ratio)] = compressed(room / "model", room, ratio, options.windows, options.device)
            result[f"{options.shape}, {layers} layers, {options.device}"] = row
            save("compression-time", result)


if __name__ == "__main__":
    main()
