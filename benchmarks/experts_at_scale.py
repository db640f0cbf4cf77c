"""Experts at the sizes of real mixtures, with random weights: what compressing a block takes, and how fast it then is.

``python benchmarks/experts_at_scale.py block``: one block of Qwen3-30B-A3B (hidden 2048, 128 experts of 768 neurons, 8
per token) in bf16 is compressed under ``--max-memory 6GiB``; time and peak of the memory that the system cannot take
back, by stage. ``python benchmarks/experts_at_scale.py speed``: four blocks of half that width with 64 experts, in
fp32, with 25 and 50 % of the experts' parameters removed by narrow experts, in turns with the original
(``basis-sharing bench``). Nothing else may run beside the second.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from basis_sharing import bench, compress
from common import machine, random_model, read, save
from memory import compressed

NAME = "experts-at-scale"
BLOCK = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "norm_topk_prob": True,
    "vocab_size": 260,
}
HALF = {
    **BLOCK,
    "hidden_size": 1024,
    "moe_intermediate_size": 384,
    "num_experts": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
}


def text_in(folder: Path, characters: int) -> Path:
    """Write a text of random letters."""
    letters = torch.randint(97, 123, (characters,), generator=torch.Generator().manual_seed(0))
    path = folder / "text.txt"
    path.write_text("".join(map(chr, letters.tolist())), encoding="utf-8")
    return path


def block(room: Path, windows: int, treatments: str) -> dict[str, Any]:
    """Return the seconds and the peak memory of compressing one block."""
    random_model(room / "model", BLOCK, architecture="Qwen3Moe", dtype="bfloat16")
    settings = {
        "model": str(room / "model"),
        "output": str(room / "out"),
        "ratio": 0.25,
        "roles": "experts",
        "treatments": treatments,
        "calibration": str(text_in(room, windows * 600)),
        "windows": windows,
        "length": 512,
        "calibration_dtype": "float32",
        "max_memory": "6GiB",
    }
    found = compressed(settings)
    gib = {stage: peak / 2**30 for stage, peak in found["stages"].items()}
    for stage, peak in gib.items():
        print(f"{stage:32} {peak:6.2f} GiB")
    print(f"{found['seconds']:.0f} s in all, peak {max(gib.values()):.2f} GiB")
    return {**found, "gib": gib, "treatments": treatments, "windows": windows}


def speed(room: Path) -> dict[str, Any]:
    """Return the speeds of narrow experts, and the ideal ones, as multiples of the original's."""
    random_model(room / "model", HALF, architecture="Qwen3Moe")
    text, folders = text_in(room, 8 * 600), [room / "model"]
    for ratio in (0.25, 0.5):
        folders.append(room / f"{ratio:.0%}")
        compress(
            room / "model",
            ratio,
            output=folders[-1],
            roles="experts",
            treatments="experts",
            calibration=str(text),
            windows=8,
            length=512,
            refit="never",
        )
    result = bench(folders, dtype="float32", prompt_tokens=256, new_tokens=16, batch_sizes=(1, 8), compile=False)
    print(result)
    found: dict[str, Any] = result.model_dump(mode="json")
    for row, folder in zip(found["models"], folders, strict=True):
        row["model"] = folder.name  # the folder itself is gone
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("block", "speed"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--treatments", default="experts")
    options = parser.parse_args()
    result = read(NAME)
    with tempfile.TemporaryDirectory() as name:
        found = block(Path(name), options.windows, options.treatments) if options.part == "block" else speed(Path(name))
    save(NAME, {**result, "machine": machine(), f"{options.part}, {options.treatments}": found})


if __name__ == "__main__":
    main()
