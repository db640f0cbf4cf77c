"""Fisher information of the input features of projections (FWSVD)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from basis_sharing.blocks.placing import placed
from basis_sharing.calibration.forward import own_windows
from basis_sharing.errors import NumericalError
from basis_sharing.models.decoder import module
from basis_sharing.models.family import Decoder
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress, ProgressCallback, silent


def row_fisher(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> dict[str, Tensor]:
    """Return the Fisher information of the input features of every projection.

    I_a = sum over windows and over outputs b of (d loss / d W_ab)^2 (FWSVD, Hsu et al. 2022, equation 6), with the
    next-token loss of each window as one sample. There is one forward and backward pass per window; activations are
    recomputed block by block, and each weight's gradient is reduced and freed as soon as it is complete.

    Args:
        model: Causal language model.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        machine: Where the whole model runs; None: where it is. Several processes divide the windows among them.
        progress: Receives one event per window.

    Returns:
        Projection name -> I, shape ``[d_in]``, fp64.

    Raises:
        NumericalError: A gradient is NaN or infinite; names the projection.
    """
    machine = machine or Machine(model.device)
    with placed(model, machine.device):
        sums = _own_sums(model, decoder, own_windows(input_ids, machine).to(machine.device), progress)
    for total in sums.values():
        machine.processes.add_up(total)
    return sums


def _own_sums(model: Any, decoder: Decoder, input_ids: Tensor, progress: ProgressCallback) -> dict[str, Tensor]:
    sums = {p.name: torch.zeros(p.d_in, dtype=torch.float64) for p in decoder.projections}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    handles = []
    for projection in decoder.projections:
        parameter = module(model, projection.name).weight
        assert isinstance(parameter, torch.nn.Parameter)
        parameter.requires_grad_(True)

        def reduce(parameter: Tensor, name: str = projection.name, transposed: bool = projection.transposed) -> None:
            assert parameter.grad is not None
            square = parameter.grad.double().square()
            sums[name] += square.sum(1 if transposed else 0).cpu()
            parameter.grad = None
            if not torch.isfinite(sums[name]).all():
                raise NumericalError(f"the gradient of {name} contains NaN or infinity: load the model in float32.")

        handles.append(parameter.register_post_accumulate_grad_hook(reduce))
    try:
        with torch.enable_grad(), _recomputed_blocks(model, decoder):
            for done, window in enumerate(input_ids, start=1):
                model(input_ids=window[None], labels=window[None], use_cache=False).loss.backward()
                progress(Progress("measuring gradients", done, len(input_ids), "windows"))
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    return sums


@contextmanager
def _recomputed_blocks(model: Any, decoder: Decoder) -> Iterator[None]:
    blocks = [model.get_submodule(path) for path in decoder.blocks]
    for block in blocks:
        original = block.forward

        def recomputed(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            return checkpoint(_original, *args, use_reentrant=False, **kwargs)

        block.forward = recomputed
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
