"""The backward sweep: second moments of loss gradients, with one decoder block at work at a time.

A forward pass through the blocks leaves the inputs of every block on a tape. The loss gradient then travels back: each
block is run again on its taped inputs, this time with gradients, and hands what arrives at its inputs to the block
before it. Weights need no gradients, so a backward step costs about as much as a forward one.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.calibration.sweep import block_calls, first_hidden_states, in_dtype, run_block
from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.progress import Progress, ProgressCallback, silent

_MEMORY_SHARE = 0.3
_POSITIONS = 512


def backward_sweep(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    dtype: torch.dtype,
    progress: ProgressCallback = silent,
) -> Iterator[tuple[int, dict[str, Moments]]]:
    """Yield the second moments of inputs and of loss gradients of each block, in reverse depth order.

    The loss is the sum of the next-token negative log-likelihoods of a window. Each token's input counts with the
    squared length of its gradient, so that tokens the loss does not depend on (attention sinks with huge activations)
    do not count.

    Args:
        model: Causal language model; it is not changed.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        dtype: Dtype of activations, gradients and weights during the sweep.
        progress: Receives one event per block and window, in either direction.

    Yields:
        Block index, and the moments of each projection of that block by name.

    Raises:
        NumericalError: A gradient is NaN or infinite; names the projection.
        ModelError: The model hands token-dependent arguments to its blocks.
        CorpusError: Neither memory nor the temporary folder has room for the block inputs.
    """
    input_ids = input_ids.to(model.device)
    calls = block_calls(model, decoder, input_ids)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        with tempfile.TemporaryDirectory(prefix="basis-sharing-") as folder:
            hidden = first_hidden_states(model, decoder, input_ids, dtype)
            tape = _tape(len(decoder.blocks), hidden, Path(folder))
            done, total = 0, len(decoder.blocks) * len(input_ids)
            for index, path in enumerate(decoder.blocks):
                block, call = in_dtype(model.get_submodule(path), dtype), calls[index].to(dtype)
                tape[index].copy_(hidden)
                with torch.no_grad():
                    for window in range(len(hidden)):
                        hidden[window] = run_block(block, hidden[window : window + 1], call)[0]
                        done += 1
                        progress(Progress("taping block inputs", done, total, "windows x blocks"))
            gradient = _head_gradients(model, decoder, hidden, input_ids, progress)
            del hidden
            done = 0
            for index in reversed(range(len(decoder.blocks))):
                path = decoder.blocks[index]
                block, call = in_dtype(model.get_submodule(path), dtype), calls[index].to(dtype)
                watch = _Watch(block, path, [p for p in decoder.projections if p.block == index])
                for window in range(len(gradient)):
                    x = tape[index][window : window + 1].to(model.device).requires_grad_(True)
                    with torch.enable_grad(), watch:
                        run_block(block, x, call).backward(gradient[window : window + 1])
                    assert x.grad is not None
                    gradient[window] = x.grad[0]
                    done += 1
                    progress(Progress("measuring gradients", done, total, "windows x blocks"))
                yield index, watch.finish(input_ids.numel())
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


class _Watch:
    """Adds up the moments of the projections of one block while it is run backwards.

    As a context it attaches itself to the block; the moments are those of all runs together.
    """

    def __init__(self, block: nn.Module, path: str, projections: list[Projection]) -> None:
        self._modules = {p.name: block.get_submodule(p.name.removeprefix(f"{path}.")) for p in projections}
        device = next(block.parameters()).device
        self._accumulators = {
            p.name: (
                MomentAccumulator(p.d_in, Statistics(gram=True), device),
                MomentAccumulator(p.d_out, Statistics(gram=True), device),
            )
            for p in projections
        }
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        inputs, outputs = self._accumulators[name]

        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2)

            def backward(gradient: Tensor) -> None:
                g = gradient.detach().flatten(0, -2)
                inputs.add(x * g.float().norm(dim=1, keepdim=True).to(x.dtype))
                if not outputs.add(g):
                    raise NumericalError(
                        f"the gradient of {name} contains NaN or infinity: calibrate in float32 "
                        "(--calibration-dtype float32)."
                    )

            output.register_hook(backward)

        return forward

    def finish(self, tokens: int) -> dict[str, Moments]:
        """Return the moments per projection; sums are over the projection's tokens, counts over the text's."""
        return {
            name: Moments(tokens=tokens, gram=inputs.finish().gram, gradient=outputs.finish().gram)
            for name, (inputs, outputs) in self._accumulators.items()
        }


def _tape(blocks: int, hidden: Tensor, folder: Path) -> Tensor:
    """Return room for the inputs of all blocks, ``[blocks, *hidden.shape]``, in a file where memory is short."""
    shape = (blocks, *hidden.shape)
    needed = blocks * hidden.numel() * hidden.element_size()
    if needed <= _MEMORY_SHARE * psutil.virtual_memory().available:
        return torch.empty(shape, dtype=hidden.dtype)
    free = psutil.disk_usage(str(folder)).free
    if needed > free:
        raise CorpusError(
            f"the gradients need {needed / 2**30:.0f} GiB for block inputs, more than memory or {folder.parent} has: "
            "use fewer windows (--windows), or --no-gradients."
        )
    return torch.from_file(
        str(folder / "tape"), shared=True, size=blocks * hidden.numel(), dtype=hidden.dtype
    ).view(shape)


def _head_gradients(
    model: Any, decoder: Decoder, hidden: Tensor, input_ids: Tensor, progress: ProgressCallback
) -> Tensor:
    """Return the gradient of the loss by what the last block hands on, the shape of ``hidden``.

    The model runs with blocks that pass their input on, so that norms, heads and soft caps of any architecture are
    its own; a few hundred positions at a time, because logits are wide.
    """
    dtype = model.dtype
    gradient = torch.zeros_like(hidden)
    given: list[Tensor] = []

    def first(*args: Any, **kwargs: Any) -> Any:
        return given[0]

    def other(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    blocks = [model.get_submodule(path) for path in decoder.blocks]
    for block in blocks:
        block.forward = first if block is blocks[0] else other
    length = input_ids.shape[1]
    try:
        with torch.enable_grad():
            for window in range(len(hidden)):
                for start in range(0, length - 1, _POSITIONS):
                    stop = min(start + _POSITIONS, length - 1)
                    x = hidden[window : window + 1, start:stop].to(dtype).requires_grad_(True)
                    given[:] = [x]
                    logits = model(input_ids=input_ids[window : window + 1, start:stop], use_cache=False).logits[0]
                    targets = input_ids[window, start + 1 : stop + 1]
                    nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
                    assert x.grad is not None
                    gradient[window, start:stop] = x.grad[0]
                progress(Progress("measuring the loss", window + 1, len(hidden), "windows"))
    finally:
        for block in blocks:
            del block.forward
    return gradient
