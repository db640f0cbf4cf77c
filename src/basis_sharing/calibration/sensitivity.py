"""Sensitivity of the loss to output errors of each projection, measured without gradients.

One projection at a time is truncated to half its rank, and the model's next-token distribution is compared with the
original's. The sensitivity is the Kullback-Leibler divergence divided by the output error; with it, the errors of all
projections can be compared in nats per token. It is one number per projection: unlike loss gradients, it does not
distinguish directions of the error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basis_sharing.blocks.calls import block_calls, fill_first_states, run_block, states_shape
from basis_sharing.blocks.head import head_only
from basis_sharing.blocks.placing import placed
from basis_sharing.linalg.truncation import Member, truncate
from basis_sharing.models.decoder import module
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress, ProgressCallback, silent

_WINDOWS = 2
_LENGTH = 512


@torch.no_grad()
def measure_sensitivity(
    model: Any,
    decoder: Decoder,
    member_of: Callable[[Projection], Member],
    input_ids: Tensor,
    *,
    dtype: torch.dtype,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> dict[str, float]:
    """Return the sensitivity of each projection: nats per token for a unit of output error E|x dW|^2.

    This takes about as long as a calibration sweep over 64 windows of 2048 tokens.

    Args:
        model: The dense model; its weights are restored after each measurement.
        decoder: Its structure.
        member_of: Returns a projection as a member weighted with the second moment of its input.
        input_ids: Calibration windows; the first 512 tokens of the first two are used.
        dtype: Dtype of activations and weights during the measurement.
        machine: Where the blocks run; None: where the model is. Several processes divide the projections among them.
        progress: Receives one event per projection.

    Returns:
        Projection name -> sensitivity.
    """
    machine = machine or Machine(model.device)
    forward = _Forward(model, decoder, input_ids[:_WINDOWS, :_LENGTH], dtype, machine.device)
    inputs = forward.inputs()
    reference = forward.log_probabilities(inputs[0], 0)
    sensitivity: dict[str, float] = {}
    own = machine.processes.own(decoder.projections)
    for done, projection in enumerate(own, start=1):
        member = member_of(projection)
        rank = max(1, min(projection.d_in, projection.d_out) // 2)
        truncated = truncate([member])
        approximation = truncated.basis[:, :rank] @ next(truncated.coefficients(rank))
        error = member.S.apply(member.W - approximation).square().sum().item()
        stored = module(model, projection.name).weight
        assert isinstance(stored, torch.nn.Parameter)
        original = stored.data
        # Replace the tensor instead of writing into it: a write would copy a memory-mapped weight into memory.
        changed_weight = approximation if projection.transposed else approximation.T
        stored.data = changed_weight.to(original.device, original.dtype).contiguous()
        try:
            changed = forward.log_probabilities(inputs[projection.block], projection.block)
        finally:
            stored.data = original
        divergence = (reference.exp() * (reference - changed)).sum(-1).mean().item()
        sensitivity[projection.name] = max(divergence, 1e-12) / max(error, 1e-30)
        progress(Progress("measuring sensitivity", done, len(own), "projections"))
    return {name: value for part in machine.processes.gather(sensitivity) for name, value in part.items()}


class _Forward:
    """The forward pass over a few windows, starting at any block."""

    def __init__(
        self, model: Any, decoder: Decoder, input_ids: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._model, self._decoder, self._dtype, self._device = model, decoder, dtype, device
        self._calls = block_calls(model, decoder, input_ids)
        self._ids = input_ids.to(device)

    def inputs(self) -> list[Tensor]:
        """Return the inputs of every block, each ``[windows, *states of a window]``."""
        states = torch.empty(states_shape(self._model, self._decoder, self._ids).all, dtype=self._dtype)
        fill_first_states(self._model, self._decoder, self._ids, states)
        inputs = [states.to(self._device)]
        for index in range(len(self._decoder.blocks) - 1):
            inputs.append(self._step(inputs[-1], index))
        return inputs

    def log_probabilities(self, states: Tensor, start: int) -> Tensor:
        """Return the log-probabilities, ``[windows, length, vocabulary]``, for the inputs ``states`` of a block."""
        for index in range(start, len(self._decoder.blocks)):
            states = self._step(states, index)
        with head_only(self._model, self._decoder, self._calls, self._device, self._dtype) as head:
            logits = torch.cat([head(*pair) for pair in zip(states, self._ids[:, None], strict=True)])
        return logits.float().log_softmax(-1)

    def _step(self, states: Tensor, index: int) -> Tensor:
        block = module(self._model, self._decoder.blocks[index])
        call = self._calls.of(index, self._device, self._dtype)
        with placed(block, self._device, self._dtype):
            return torch.stack([run_block(block, own, call(window)) for window, own in enumerate(states)])
