"""The honest rival: plain 8-bit weights, rounded to nearest, against the original.

``python benchmarks/eight_bits.py`` (about five minutes on two cores). Every compressible projection of SmolLM2-135M is
rounded to int8 with one scale per output, as weight-only quantization does without any calibration; embeddings and
norms stay. Perplexity on the first ``--evaluation-windows`` windows of ``wiki.test.raw``, in fp32.
"""

import argparse
import math

import torch
from torch import Tensor

from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.models.decoder import weight
from basis_sharing.plans.plan import dense_parameters
from common import TEST_TEXT, evaluation_on, machine, real_model, save


def rounded(W: Tensor) -> Tensor:
    """Return W, shape ``[d_in, d_out]``, with every column rounded to 255 steps."""
    scale = W.abs().amax(0) / 127
    return (W / scale).round() * scale


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    windows = parser.parse_args().evaluation_windows
    with progress_bars() as progress, real_model(progress=progress) as run:
        text = evaluation_on(run, TEST_TEXT, windows)
        dense = measure(run.model, text, progress=progress)
        for projection in run.decoder.projections:
            W = weight(run.model, projection)
            W.copy_(rounded(W))
        found = measure(run.model, text, progress=progress)
    parameters, outputs = dense_parameters(run.decoder), sum(p.d_out for p in run.decoder.projections)
    result = {
        "machine": machine(),
        "windows": windows,
        "dense": dense.perplexity,
        "int8": found.perplexity,
        "times_dense": math.exp(found.nats_per_token - dense.nats_per_token),
        "bytes_of_projections_against_bf16": (parameters + 2 * outputs) / (2 * parameters),
    }
    print(result)
    save("eight-bits", result)


if __name__ == "__main__":
    main()
