"""The backward sweep: second moments of loss gradients, computed one decoder block at a time.

A forward pass through the blocks stores the inputs of every block. The loss gradient is then propagated back: each
block is run again on its stored inputs, this time with gradients, and the gradient at its inputs is that at the outputs
of the block before it. Weights need no gradients, so a backward step costs about as much as a forward one.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.calls import BlockCall, block_calls, fill_first_states, run_block, states_shape
from basis_sharing.blocks.head import head_only
from basis_sharing.blocks.placing import placed
from basis_sharing.blocks.states import BlockInputs, make_block_inputs, states_like
from basis_sharing.calibration.forward import own_windows
from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.calibration.single_experts import SingleExperts
from basis_sharing.errors import NumericalError
from basis_sharing.models.family import Decoder, Experts, Projection
from basis_sharing.run.durable import UNFINISHED
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.resume import ResumePoint

_RESUME_FILES = ("taped", "loss", "gradients")  # one per stage


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
    """Yield the second moments of the inputs and of the loss gradients of each block, in reverse depth order.

    The loss is the sum of the next-token negative log-likelihoods of a window.

    Args:
        model: Causal language model; it is not changed.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        dtype: Dtype of activations, gradients and weights during the sweep.
        folder: Where block inputs and gradients are kept. An interrupted sweep of the same model, text and dtype
            resumes there and yields only the remaining blocks.
        machine: Where the blocks run; None: where the model is. Several processes divide the windows among them and
            yield the statistics of all.
        progress: Receives one event per block and window in each direction.

    Yields:
        Block index, and the moments of that block: ``gram`` by name of the input, ``gradient`` by name of the
        projection. A resumed sweep does not repeat a block once the next one has been requested, so the caller must
        save the moments before that.

    Raises:
        NumericalError: A block output or a gradient is NaN or infinite; names the block or the projection.
        ModelError: A block is given arguments of another form for other tokens.
        CorpusError: Memory and disk have no room for the block inputs, or there are fewer windows than processes.
    """
    machine = machine or Machine(model.device)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        with ExitStack() as stack:
            room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
            stages = _Stages(model, decoder, own_windows(input_ids, machine), dtype, machine, room, progress)
            shape = stages.shape.all
            inputs = make_block_inputs(1 + len(decoder.blocks), shape, dtype, room, machine, wanted=folder is not None)
            # A sweep can only be resumed if its block inputs are in a file.
            kept = room if folder is not None and inputs.file is not None else None
            recording, loss, gradients = (
                ResumePoint(kept and kept / f"{name}{UNFINISHED}", machine.processes) for name in _RESUME_FILES
            )
            gradient = states_like(shape, dtype, room / f"gradient{UNFINISHED}", machine).zero_()
            blocks_done = gradients.resume(gradient)
            if not blocks_done:
                windows_done = loss.resume(gradient)
                if not windows_done:
                    stages.record_inputs(inputs, recording)
                stages.start_gradients(inputs, gradient, windows_done, loss)
            yield from stages.propagate(inputs, gradient, blocks_done, gradients)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


class _Stages:
    """The stages of a sweep: record the block inputs, compute the loss gradient, propagate it through the blocks."""

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        input_ids: Tensor,
        dtype: torch.dtype,
        machine: Machine,
        folder: Path,
        progress: ProgressCallback,
    ) -> None:
        self.model, self.decoder, self.input_ids, self.progress = model, decoder, input_ids, progress
        self.shape = states_shape(model, decoder, input_ids)
        self._machine, self._device, self._dtype = machine, machine.device, dtype
        self._calls = block_calls(model, decoder, input_ids, folder=folder, machine=machine)

    def record_inputs(self, inputs: BlockInputs, point: ResumePoint) -> None:
        """Write the inputs of every block, and the output of the last one, into ``inputs``."""
        first = point.resume()
        if not first:
            fill_first_states(self.model, self.decoder, self.input_ids, inputs.rows[0])
        windows = len(self.input_ids)
        done, total = first * windows, len(self.decoder.blocks) * windows
        for index, path in list(enumerate(self.decoder.blocks))[first:]:
            with self._block(index) as (block, call):
                for window in range(windows):
                    with torch.no_grad():
                        output = run_block(block, inputs.read(index, window, self._device), call(window))
                    if not torch.isfinite(output).all():
                        raise NumericalError(
                            f"what {path} computes contains NaN or infinity: calibrate in float32 "
                            "(--calibration-dtype float32) or check the model's weights."
                        )
                    inputs.rows[index + 1][window].copy_(output)
                    done += 1
                    self.progress(Progress("recording block inputs", done, total, "windows x blocks"))
            point.reach(index + 1, beside=inputs.file)

    def start_gradients(self, inputs: BlockInputs, gradient: Tensor, first: int, point: ResumePoint) -> None:
        """Write the gradient of the loss by the last block's output into ``gradient``, from window ``first`` on.

        Positions are processed in chunks, because the logits of a whole window take much memory.
        """
        windows, tokens = len(self.input_ids), self.shape.tokens
        head_alone = head_only(self.model, self.decoder, self._calls, self._device, self._dtype)
        with head_alone as head, torch.enable_grad():
            for window in range(first, windows):
                outputs, ids = inputs.read(-1, window, self._device), self.input_ids[window].to(self._device)
                for start, states, predicted in self.shape.head_parts():
                    x = outputs.narrow(tokens, start, states).clone().requires_grad_(True)
                    logits, targets = head(x, ids[None, start : start + states])[0], ids[start + 1 :][:predicted]
                    nn.functional.cross_entropy(logits[:predicted].float(), targets, reduction="sum").backward()
                    assert x.grad is not None
                    gradient[window].narrow(tokens, start, states).copy_(x.grad)
                self.progress(Progress("measuring the loss", window + 1, windows, "windows"))
                # Resume points need equal steps on all processes, which may have different numbers of windows.
                if self._machine.processes.count == 1:
                    point.reach(window + 1, gradient)

    def propagate(
        self, inputs: BlockInputs, gradient: Tensor, first: int, point: ResumePoint
    ) -> Iterator[tuple[int, dict[str, Moments]]]:
        """Propagate the gradient back through all blocks but the last ``first``, and yield the moments of each."""
        blocks, windows = len(self.decoder.blocks), len(self.input_ids)
        done, total = first * windows, blocks * windows
        for index in list(reversed(range(blocks)))[first:]:
            projections = [p for p in self.decoder.projections if p.block == index]
            experts = [e for e in self.decoder.experts if e.block == index]
            with self._block(index) as (block, call):
                watch = _Watch(block, self.decoder.blocks[index], projections, experts)
                for window in range(windows):
                    x = inputs.read(index, window, self._device).requires_grad_(True)
                    with torch.enable_grad(), watch:
                        run_block(block, x, call(window)).backward(gradient[window].to(self._device))
                    assert x.grad is not None
                    gradient[window] = x.grad
                    done += 1
                    self.progress(Progress("measuring gradients", done, total, "windows x blocks"))
            yield index, watch.finish(self.input_ids.numel(), self._machine.processes)
            point.reach(blocks - index, gradient)

    @contextmanager
    def _block(self, index: int) -> Iterator[tuple[nn.Module, Callable[[int], BlockCall]]]:
        module = self.model.get_submodule(self.decoder.blocks[index])
        with placed(module, self._device, self._dtype):
            yield module, self._calls.of(index, self._device, self._dtype)


class _Identity(nn.Module):
    """The identity before or after experts: what it returns has a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a view of a tensor."""
        return x.view_as(x)


class _Watch:
    """Accumulates the moments of one block during forward and backward passes.

    Its hooks are attached to the block inside its context, which may be entered several times; the moments are summed
    over all passes.
    """

    def __init__(
        self, block: nn.Module, path: str, projections: Sequence[Projection], experts: Sequence[Experts] = ()
    ) -> None:
        device = next(block.parameters()).device
        self._modules = {p.name: block.get_submodule(p.name.removeprefix(f"{path}.")) for p in projections}
        self._experts = {e: block.get_submodule(e.name.removeprefix(f"{path}.")) for e in experts}
        self._single = {e: SingleExperts(e, module, device) for e, module in self._experts.items()}
        around = [side for e in experts for side in (e.reads, e.writes)]
        self._modules |= {side.name: _Identity() for side in around}
        projections = [*projections, *around]
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
        for experts, module in self._experts.items():
            reads, writes = self._modules[experts.reads.name], self._modules[experts.writes.name]
            self._handles += [
                module.register_forward_pre_hook(_passed_through(reads), with_kwargs=True),
                module.register_forward_hook(self._watch_experts(experts, writes), with_kwargs=True),
            ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch_input(self, name: str) -> Any:
        def forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[name].add(args[0].detach().flatten(0, -2))

        return forward

    def _watch_experts(self, experts: Experts, writes: nn.Module) -> Any:
        def forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            given = (*args, *kwargs.values())
            self._single[experts].seen(given[0], given[1:], output)
            passed: Tensor = writes(output)
            return passed

        return forward

    def _watch_output(self, name: str) -> Any:
        def backward(gradient: Tensor) -> None:
            if not self._outputs[name].add(gradient.detach().flatten(0, -2)):
                raise NumericalError(
                    f"the gradient of {name} contains NaN or infinity: calibrate in float32 "
                    "(--calibration-dtype float32)."
                )

        def forward(_: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                raise NumericalError(
                    f"{name} receives no gradient of the loss, so its errors cannot be weighted by it: use "
                    "--no-gradients, or leave its role out (--roles)."
                )
            output.register_hook(backward)

        return forward

    def finish(self, tokens: int, processes: Processes) -> dict[str, Moments]:
        """Return the moments, summed over all processes.

        The token count of every projection is that of the text, including experts that read only some of the tokens.
        """
        inputs = {name: accumulator.finish(processes) for name, accumulator in self._inputs.items()}
        count = torch.tensor(tokens)
        processes.add_up(count)
        outputs = {
            name: Moments(tokens=int(count), gradient=accumulator.finish(processes).gram)
            for name, accumulator in self._outputs.items()
        }
        squares: dict[str, Moments] = {}
        for experts, single in self._single.items():
            squares |= single.finish(int(count), processes)
            inputs[experts.reads.input].visits = single.visits.cpu()
        return {**inputs, **outputs, **squares}


def _passed_through(identity: nn.Module) -> Any:
    """Return a hook that passes the first argument of a module through another one."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (identity(args[0]), *args[1:]), kwargs
        name, first = next(iter(kwargs.items()))
        return args, {**kwargs, name: identity(first)}

    return hook
