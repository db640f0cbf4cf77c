"""The backward sweep: second moments of loss gradients, with one decoder block at work at a time.

A forward pass through the blocks leaves the inputs of every block on a tape. The loss gradient then travels back: each
block is run again on its taped inputs, this time with gradients, and hands what arrives at its inputs to the block
before it. Weights need no gradients, so a backward step costs about as much as a forward one.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.calibration.sweep import block_calls, first_hidden_states, head_only, in_dtype, run_block
from basis_sharing.calibration.waypoint import Waypoint
from basis_sharing.durable import UNFINISHED, allocate
from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.progress import Progress, ProgressCallback, silent

_MEMORY_SHARE = 0.3
_DISK_SHARE = 0.8
_POSITIONS = 512


def backward_sweep(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    dtype: torch.dtype,
    folder: Path | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[tuple[int, dict[str, Moments]]]:
    """Yield the second moments of inputs and of loss gradients of each block, in reverse depth order.

    The loss is the sum of the next-token negative log-likelihoods of a window.

    Args:
        model: Causal language model; it is not changed.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        dtype: Dtype of activations, gradients and weights during the sweep.
        folder: Where block inputs and gradients are kept; a sweep of the same model, text and dtype that was
            interrupted goes on from there, and yields only the blocks that are left.
        progress: Receives one event per block and window, in either direction.

    Yields:
        Block index, and the moments of that block: ``gram`` by name of the input, ``gradient`` by name of the
        projection. They are taken for safe when the next block is asked for.

    Raises:
        NumericalError: What a block computes or a gradient is NaN or infinite; names the block or the projection.
        ModelError: The model hands token-dependent arguments to its blocks.
        CorpusError: Neither memory nor the temporary folder has room for the block inputs.
    """
    input_ids = input_ids.to(model.device)
    calls = block_calls(model, decoder, input_ids)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        with ExitStack() as stack:
            room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
            hidden = first_hidden_states(model, decoder, input_ids, dtype)
            tape, file = _tape(1 + len(decoder.blocks), hidden, room, wanted=folder is not None)
            # Without a file there are no block inputs to go on with.
            kept = room if folder is not None and file is not None else None
            taped, measured, swept = (
                Waypoint(kept and kept / f"{name}{UNFINISHED}") for name in ("taped", "loss", "gradients")
            )
            gradient = torch.zeros_like(hidden)
            blocks_swept = swept.resume(gradient)
            windows_measured = len(hidden) if blocks_swept else measured.resume(gradient)
            blocks_taped = len(decoder.blocks) if windows_measured else taped.resume()
            if not blocks_taped:
                tape[0].copy_(hidden)
            del hidden
            done, total = blocks_taped * len(input_ids), len(decoder.blocks) * len(input_ids)
            for index, path in list(enumerate(decoder.blocks))[blocks_taped:]:
                block, call = in_dtype(model.get_submodule(path), dtype), calls[index].to(dtype)
                with torch.no_grad():
                    for window in range(len(input_ids)):
                        x = tape[index][window : window + 1].to(model.device)
                        y = run_block(block, x, call)[0]
                        if not torch.isfinite(y).all():
                            raise NumericalError(
                                f"what {path} computes contains NaN or infinity: calibrate in float32 "
                                "(--calibration-dtype float32) or check the model's weights."
                            )
                        tape[index + 1][window].copy_(y)
                        done += 1
                        progress(Progress("taping block inputs", done, total, "windows x blocks"))
                taped.reach(index + 1, beside=file)
            _head_gradients(model, decoder, tape[-1], input_ids, gradient, windows_measured, measured, progress)
            done = blocks_swept * len(input_ids)
            for index in list(reversed(range(len(decoder.blocks))))[blocks_swept:]:
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
                swept.reach(len(decoder.blocks) - index, gradient)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


class _Watch:
    """Adds up the moments of one block while it is run backwards.

    As a context it attaches itself to the block; the moments are those of all runs together.
    """

    def __init__(self, block: nn.Module, path: str, projections: list[Projection]) -> None:
        device = next(block.parameters()).device
        self._modules = {p.name: block.get_submodule(p.name.removeprefix(f"{path}.")) for p in projections}
        self._readers = {p.input: p for p in reversed(projections)}
        self._inputs = {
            name: MomentAccumulator(p.d_in, Statistics(gram=True, abs_sum=True), device)
            for name, p in self._readers.items()
        }
        self._outputs = {p.name: MomentAccumulator(p.d_out, Statistics(gram=True), device) for p in projections}
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(self._watch_output(n)) for n, module in self._modules.items()]
        for name, projection in self._readers.items():
            module = self._modules[projection.name]
            self._handles.append(module.register_forward_pre_hook(self._watch_input(name)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch_input(self, name: str) -> Any:
        def forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[name].add(args[0].detach().flatten(0, -2))

        return forward

    def _watch_output(self, name: str) -> Any:
        def backward(gradient: Tensor) -> None:
            if not self._outputs[name].add(gradient.detach().flatten(0, -2)):
                raise NumericalError(
                    f"the gradient of {name} contains NaN or infinity: calibrate in float32 "
                    "(--calibration-dtype float32)."
                )

        def forward(_: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(backward)

        return forward

    def finish(self, tokens: int) -> dict[str, Moments]:
        """Return the moments; the sums of gradients are over the projection's tokens, their count is the text's."""
        inputs = {name: accumulator.finish() for name, accumulator in self._inputs.items()}
        outputs = {
            name: Moments(tokens=tokens, gradient=accumulator.finish().gram)
            for name, accumulator in self._outputs.items()
        }
        return {**inputs, **outputs}


def _tape(rows: int, hidden: Tensor, folder: Path, *, wanted: bool) -> tuple[Tensor, Path | None]:
    """Return room for what blocks read, ``[rows, *hidden.shape]``, and its file.

    It is in a file where that is wanted and the disk has room, or where memory is short; what is in the file already
    stays there.
    """
    shape, count = (rows, *hidden.shape), rows * hidden.numel()
    needed, file = count * hidden.element_size(), folder / f"tape{UNFINISHED}"
    there = file.is_file() and file.stat().st_size == needed
    fits = needed <= _MEMORY_SHARE * psutil.virtual_memory().available
    room = there or needed < _DISK_SHARE * psutil.disk_usage(str(folder)).free
    if fits and not (wanted and room):
        return torch.empty(shape, dtype=hidden.dtype), None
    if not room:
        raise CorpusError(
            f"the gradients need {needed / 2**30:.0f} GiB for block inputs, more than memory or {folder.parent} has: "
            "use fewer windows (--windows), or --no-gradients."
        )
    if not there:
        for waypoint in folder.glob(f"*{UNFINISHED}"):
            waypoint.unlink()
        allocate(file, needed)
    tape = torch.from_file(str(file), shared=True, size=count, dtype=hidden.dtype).view(shape)
    return tape, file


def _head_gradients(
    model: Any,
    decoder: Decoder,
    outputs: Tensor,
    input_ids: Tensor,
    gradient: Tensor,
    first: int,
    waypoint: Waypoint,
    progress: ProgressCallback,
) -> None:
    """Fill ``gradient`` from window ``first`` on with the gradient of the loss by what the last block hands on.

    A few hundred positions at a time, because logits are wide.
    """
    length = input_ids.shape[1]
    with head_only(model, decoder, gradient.dtype) as head, torch.enable_grad():
        for window in range(first, len(outputs)):
            for start in range(0, length - 1, _POSITIONS):
                stop = min(start + _POSITIONS, length - 1)
                x = outputs[window : window + 1, start:stop].to(gradient.device, copy=True).requires_grad_(True)
                logits = head(x, input_ids[window : window + 1, start:stop])[0]
                targets = input_ids[window, start + 1 : stop + 1]
                nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
                assert x.grad is not None
                gradient[window, start:stop] = x.grad[0]
            progress(Progress("measuring the loss", window + 1, len(outputs), "windows"))
            waypoint.reach(window + 1, gradient)
