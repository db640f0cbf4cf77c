"""What an error at the output of each projection costs, measured without gradients (DESIGN 3.2).

Each projection in turn is truncated to half its rank, and the model's next-token distribution is compared with the
original's. The divergence divided by the output error is the sensitivity: with it, errors of all projections count in
nats per token. It knows one number per projection, where gradients know a direction for every error.
"""

from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.sweep import block_calls, first_hidden_states, head_only, in_dtype, run_block
from basis_sharing.linalg.truncation import truncate
from basis_sharing.models.decoder import module
from basis_sharing.models.family import Decoder
from basis_sharing.progress import Progress, ProgressCallback, silent
from basis_sharing.weighting import Weigher

_WINDOWS = 2
_LENGTH = 512


@torch.no_grad()
def measure_sensitivity(
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    input_ids: Tensor,
    *,
    dtype: torch.dtype,
    progress: ProgressCallback = silent,
) -> dict[str, float]:
    """Return nats per token for a unit of output error E|x dW|^2, by projection.

    Takes about as long as a calibration sweep over 64 windows of 2048 tokens.

    Args:
        model: The dense model; its weights are put back.
        decoder: Its structure.
        weigher: Weighs errors with the second moments of the inputs, with any sensitivity.
        input_ids: Calibration windows; the beginnings of the first ones are used.
        dtype: Dtype to run in.
        progress: Receives one event per projection.
    """
    ids = input_ids[:_WINDOWS, :_LENGTH].to(model.device)
    calls = [call.to(dtype) for call in block_calls(model, decoder, ids)]

    def step(hidden: Tensor, index: int) -> Tensor:
        return run_block(in_dtype(module(model, decoder.blocks[index]), dtype), hidden, calls[index])

    def run(hidden: Tensor, start: int) -> Tensor:
        """Return log-probabilities ``[windows, length, vocabulary]`` from the inputs of block ``start``."""
        for index in range(start, len(decoder.blocks)):
            hidden = step(hidden, index)
        with head_only(model, decoder, dtype) as head:
            return head(hidden, ids).float().log_softmax(-1)

    inputs = [first_hidden_states(model, decoder, ids, dtype)]
    for index in range(len(decoder.blocks) - 1):
        inputs.append(step(inputs[-1], index))
    reference = run(inputs[0], 0)
    found: dict[str, float] = {}
    for done, projection in enumerate(decoder.projections, start=1):
        (member,) = weigher.problem(model, [projection])
        rank = max(1, min(projection.d_in, projection.d_out) // 2)
        truncated = truncate([member])
        approximation = truncated.basis[:, :rank] @ next(truncated.coefficients(rank))
        error = member.S.apply(member.W - approximation).square().sum().item()
        stored = module(model, projection.name).weight
        assert isinstance(stored, torch.nn.Parameter)
        original = stored.data
        # Written over, a weight that is read from its file would become memory of its own.
        stored.data = (approximation if projection.transposed else approximation.T).to(original.dtype).contiguous()
        try:
            changed = run(inputs[projection.block], projection.block)
        finally:
            stored.data = original
        divergence = (reference.exp() * (reference - changed)).sum(-1).mean().item()
        found[projection.name] = max(divergence, 1e-12) / max(error, 1e-30)
        progress(Progress("measuring sensitivity", done, len(decoder.projections), "projections"))
    return found
