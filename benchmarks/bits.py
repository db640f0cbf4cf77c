"""Perplexity against bits per weight: rounding to nearest, GPTQ, bits chosen by the planner, bits and ranks chosen.

``python benchmarks/bits.py [--bits 4.5,4,3.5,3,2.5] [--windows N] [--evaluation-windows N] [--roles ROLES]``

The weights of the real models at hand lie on a 4-bit grid, which flatters rounding to 4 bits. So the residual stream is
rotated by a random orthogonal matrix first, norms are folded into the projections and the head is untied: the function
is the same, the grid is gone (``--no-rotation`` leaves it). The model is stored in bf16 and measured in fp32. Scales
and zero points are counted: 4 bits in groups of 64 are 4.31 per weight. Rows that are in the result already are left
out; ``--picture FILE`` draws them all.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from basis_sharing import compress
from basis_sharing.cli.console import progress_bars
from basis_sharing.errors import PlanError
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.results.words import bits_per_weight
from common import CALIBRATION, ROOT, TEST_TEXT, evaluation_on, machine, read, real_model, save

NAME = "bits-smollm2"
UNIFORM = (8, 4, 3, 2)
PLANNED = {"bits": ("bits",), "bits and ranks": ("factors", "bits")}


@torch.no_grad()
def rotated(model: Any) -> Any:
    """Rotate the residual stream of a LLaMA in place, and return it: its logits stay, its weights leave their grid."""
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))[0]

    def read_by(linears: list[Any], norm: Any) -> None:
        for linear in linears:
            linear.weight.copy_((linear.weight.double() * norm.weight.double()) @ Q)
        norm.weight.fill_(1.0)

    decoder, head = model.model, model.lm_head
    head.weight = torch.nn.Parameter(head.weight.clone())
    model.config.tie_word_embeddings = False
    decoder.embed_tokens.weight.copy_(decoder.embed_tokens.weight.double() @ Q)
    for block in decoder.layers:
        attention, mlp = block.self_attn, block.mlp
        read_by([attention.q_proj, attention.k_proj, attention.v_proj], block.input_layernorm)
        read_by([mlp.gate_proj, mlp.up_proj], block.post_attention_layernorm)
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(Q.T @ linear.weight.double())
    read_by([head], decoder.norm)
    return model


def row(folder: Path, text: Any, options: argparse.Namespace, settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return bits per weight, expected loss and measured loss of one way to compress."""
    with progress_bars() as progress:
        model, result = compress(
            str(folder),
            calibration=CALIBRATION,
            windows=options.windows,
            length=2048,
            calibration_dtype="float32",
            roles=options.roles,
            refit="never",
            across_depth=settings.get("method") is not None,
            work=options.work,
            progress=progress,
            **settings,
        )
    found = measure(model.float(), text)
    expected = None if result.prediction is None else result.prediction.loss
    made = {
        "bits": bits_per_weight(result),
        "expected": expected,
        "nats": found.nats_per_token,
        "perplexity": found.perplexity,
        "with_ranks": sum(report.entry.kind == "factors" for report in result.entries),
        "projections": sum(len(report.entry.members) for report in result.entries),
    }
    print(f"{name}: {made}", flush=True)
    return made


def correlation(rows: dict[str, Any]) -> float:
    """Return the rank correlation of expected and measured losses of the planned rows."""
    planned = [row for name, row in rows.items() if name.startswith(tuple(PLANNED))]
    rises = [row["nats"] - rows["original"]["nats"] for row in planned]
    return float(spearmanr([row["expected"] for row in planned], rises).statistic)


def draw(rows: dict[str, Any], path: Path) -> None:
    """Draw perplexity against bits per weight, one line for every way."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    names = {
        "rtn": "rounded to the nearest",
        "gptq": "GPTQ",
        "bits": "bits planned",
        "bits and ranks": "bits and ranks",
    }
    for (way, label), marker in zip(names.items(), "v^os", strict=True):
        line = sorted((row["bits"], row["perplexity"]) for name, row in rows.items() if name.rpartition(" ")[0] == way)
        axes.plot(*zip(*line, strict=True), marker=marker, label=label)
    original = rows["original"]["perplexity"]
    axes.axhline(original, color="grey", linestyle=":", label="original")
    axes.set(
        xlabel="bits per projection weight, scales and zero points counted",
        ylabel="perplexity, as a multiple of the original's",
        yscale="log",
        ylim=(original * 0.9, original * 12),
        xlim=(2, 5),
    )
    axes.set_yticks([scale * original for scale in (1, 1.5, 2, 3, 5, 10)], labels=["1 x", "1.5", "2", "3", "5", "10"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="4.5,4,3.5,3,2.5")
    parser.add_argument("--picture", type=Path, help="draw the rows of the result, and measure nothing")
    parser.add_argument("--uniform", default=",".join(map(str, UNIFORM)))
    parser.add_argument("--ways", default=",".join(PLANNED))
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    parser.add_argument("--roles", type=lambda text: tuple(text.split(",")), help="round these roles only")
    parser.add_argument("--no-rotation", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bits", help="where statistics are kept")
    options = parser.parse_args()
    result = read(NAME)
    key = f"{'as it is' if options.no_rotation else 'rotated'}, {','.join(options.roles or ('all roles',))}"
    rows = result.setdefault(key, {})
    if options.picture is not None:
        draw(rows, options.picture)
        print(f"rank correlation of expected and measured losses: {correlation(rows):.3f}")
        return
    with real_model() as run, tempfile.TemporaryDirectory() as room:
        text = evaluation_on(run, TEST_TEXT, options.evaluation_windows)
        original = measure(run.model, text).nats_per_token
        if not options.no_rotation:
            rotated(run.model)
            change = abs(measure(run.model, text).nats_per_token - original)
            assert change < 1e-3, change
        folder = Path(room) / "model"
        run.model.bfloat16().save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        rows["original"] = {"nats": original, "perplexity": math.exp(original)}
        wanted: dict[str, dict[str, Any]] = {}
        for width in filter(None, options.uniform.split(",")):
            wanted |= {f"{method} {width}": {"method": method, "bits": int(width)} for method in ("rtn", "gptq")}
        for bits in options.bits.split(","):
            for way in options.ways.split(","):
                wanted[f"{way} {bits}"] = {
                    "bits": float(bits),
                    "treatments": PLANNED[way],
                    "widths": UNIFORM,
                    "rank_multiple": 8,
                }
        for name, settings in wanted.items():
            if name in rows:
                continue
            try:
                rows[name] = row(folder, text, options, settings, name)
            except PlanError as error:
                print(f"{name}: {error}")
                continue
            save(NAME, {**result, "machine": machine()})


if __name__ == "__main__":
    main()
