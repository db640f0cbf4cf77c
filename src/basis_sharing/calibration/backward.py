"""The backward sweep: second moments of loss gradients, with one decoder block at work at a time.

A forward pass through the blocks leaves the inputs of every block on a tape. The loss gradient then travels back: each
block is run again on its taped inputs, this time with gradients, and hands what arrives at its inputs to the block
before it. Weights need no gradients, so a backward step costs about as much as a forward one.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.calls import BlockCall, block_calls, fill_first_states, head_only, run_block, states_shape
from basis_sharing.blocks.placing import placed
from basis_sharing.blocks.states import BlockInputs, make_block_inputs, states_like
from basis_sharing.calibration.forward import own_windows
from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.errors import NumericalError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.durable import UNFINISHED
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.resume import ResumePoint

_STAGES = ("taped", "loss", "gradients")
_POSITIONS = 512


def backward_sweep(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    dtype: torch.dtype,
    folder: Path | None = None,
    machine: Machine | None = None,
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
        machine: Where the blocks run; None: where the model is. Several processes divide the windows among them and
            yield the statistics of all.
        progress: Receives one event per block and window, in either direction.

    Yields:
        Block index, and the moments of that block: ``gram`` by name of the input, ``gradient`` by name of the
        projection. They are taken for safe when the next block is asked for.

    Raises:
        NumericalError: What a block computes or a gradient is NaN or infinite; names the block or the projection.
        ModelError: The model hands token-dependent arguments to its blocks.
        CorpusError: Neither memory nor the temporary folder has room for the block inputs, or there are fewer windows
            than processes.
    """
    machine = machine or Machine(model.device)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        with ExitStack() as stack:
            room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
            stages = _Stages(model, decoder, input_ids, dtype, machine, progress)
            shape = states_shape(model, decoder, stages.input_ids)
            tape = make_block_inputs(1 + len(decoder.blocks), shape, dtype, room, machine, wanted=folder is not None)
            # Without a file there are no block inputs to go on with.
            kept = room if folder is not None and tape.file is not None else None
            taping, loss, gradients = (
                ResumePoint(kept and kept / f"{name}{UNFINISHED}", machine.processes) for name in _STAGES
            )
            gradient = states_like(shape, dtype, room / f"gradient{UNFINISHED}", machine).zero_()
            blocks_done = gradients.resume(gradient)
            if not blocks_done:
                windows_done = loss.resume(gradient)
                if not windows_done:
                    stages.tape_inputs(tape, taping)
                stages.start_gradients(tape, gradient, windows_done, loss)
            yield from stages.back(tape, gradient, blocks_done, gradients)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


class _Stages:
    """The three stages of a sweep there and back again."""

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        input_ids: Tensor,
        dtype: torch.dtype,
        machine: Machine,
        progress: ProgressCallback,
    ) -> None:
        self.model, self.decoder, self.progress = model, decoder, progress
        self.input_ids = own_windows(input_ids, machine)
        self._machine, self._device, self._dtype = machine, machine.device, dtype
        self._calls = block_calls(model, decoder, input_ids)

    def tape_inputs(self, tape: BlockInputs, point: ResumePoint) -> None:
        """Fill the tape with what every block reads, and what the last one hands on."""
        first = point.resume()
        if not first:
            fill_first_states(self.model, self.decoder, self.input_ids, tape.rows[0])
        windows = len(self.input_ids)
        done, total = first * windows, len(self.decoder.blocks) * windows
        for index, path in list(enumerate(self.decoder.blocks))[first:]:
            with self._block(index) as (block, call):
                for window in range(windows):
                    with torch.no_grad():
                        output = run_block(block, tape.read(index, window, self._device), call)[0]
                    if not torch.isfinite(output).all():
                        raise NumericalError(
                            f"what {path} computes contains NaN or infinity: calibrate in float32 "
                            "(--calibration-dtype float32) or check the model's weights."
                        )
                    tape.rows[index + 1][window].copy_(output)
                    done += 1
                    self.progress(Progress("recording block inputs", done, total, "windows x blocks"))
            point.reach(index + 1, beside=tape.file)

    def start_gradients(self, tape: BlockInputs, gradient: Tensor, first: int, point: ResumePoint) -> None:
        """Fill ``gradient`` from window ``first`` on with that of the loss by what the last block hands on.

        A few hundred positions at a time, because logits are wide.
        """
        windows, length = self.input_ids.shape
        with head_only(self.model, self.decoder, self._device, self._dtype) as head, torch.enable_grad():
            for window in range(first, windows):
                outputs, ids = tape.read(-1, window, self._device), self.input_ids[window].to(self._device)
                for start in range(0, length - 1, _POSITIONS):
                    stop = min(start + _POSITIONS, length - 1)
                    x = outputs[:, start:stop].clone().requires_grad_(True)
                    logits = head(x, ids[None, start:stop])[0]
                    nn.functional.cross_entropy(logits.float(), ids[start + 1 : stop + 1], reduction="sum").backward()
                    assert x.grad is not None
                    gradient[window, start:stop] = x.grad[0]
                self.progress(Progress("measuring the loss", window + 1, windows, "windows"))
                if self._machine.processes.count == 1:  # several processes have different numbers of windows
                    point.reach(window + 1, gradient)

    def back(
        self, tape: BlockInputs, gradient: Tensor, first: int, point: ResumePoint
    ) -> Iterator[tuple[int, dict[str, Moments]]]:
        """Carry the gradient back through the blocks, of which the ``first`` last ones are done."""
        blocks, windows = len(self.decoder.blocks), len(self.input_ids)
        done, total = first * windows, blocks * windows
        for index in list(reversed(range(blocks)))[first:]:
            projections = [p for p in self.decoder.projections if p.block == index]
            with self._block(index) as (block, call):
                watch = _Watch(block, self.decoder.blocks[index], projections)
                for window in range(windows):
                    x = tape.read(index, window, self._device).requires_grad_(True)
                    with torch.enable_grad(), watch:
                        run_block(block, x, call).backward(gradient[window : window + 1].to(self._device))
                    assert x.grad is not None
                    gradient[window] = x.grad[0]
                    done += 1
                    self.progress(Progress("measuring gradients", done, total, "windows x blocks"))
            yield index, watch.finish(self.input_ids.numel(), self._machine.processes)
            point.reach(blocks - index, gradient)

    @contextmanager
    def _block(self, index: int) -> Iterator[tuple[nn.Module, BlockCall]]:
        module = self.model.get_submodule(self.decoder.blocks[index])
        with placed(module, self._device, self._dtype):
            yield module, self._calls[index].to(self._device, self._dtype)


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

    def finish(self, tokens: int, processes: Processes) -> dict[str, Moments]:
        """Return the moments of all processes; a projection's tokens are those of the text, also in an expert."""
        inputs = {name: accumulator.finish(processes) for name, accumulator in self._inputs.items()}
        count = torch.tensor(tokens)
        processes.add_up(count)
        outputs = {
            name: Moments(tokens=int(count), gradient=accumulator.finish(processes).gram)
            for name, accumulator in self._outputs.items()
        }
        return {**inputs, **outputs}
