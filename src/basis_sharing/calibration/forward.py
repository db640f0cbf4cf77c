"""The block-by-block sweep: activations of all windows through one decoder block at a time.

One forward pass records what the model hands to its blocks besides the hidden states (masks, position
embeddings, ...); after that each block is run alone, on the stored outputs of the block before it. Only one block's
statistics and one copy of the hidden states exist at a time.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.placing import placed, placed_outside
from basis_sharing.blocks.states import states_like
from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.errors import CorpusError, ModelError, NumericalError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.durable import UNFINISHED
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.resume import Waypoint


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """Return bf16 where the hardware multiplies it faster than fp32, else fp32."""
    if device is not None and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


@dataclass
class BlockCall:
    """What a model hands to one decoder block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device, dtype: torch.dtype) -> "BlockCall":
        """Return the call on a device, with floating point tensors in ``dtype``."""
        args, kwargs = _map_tensors(
            (self.args, self.kwargs), lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device)
        )
        return BlockCall(args, kwargs)


class _Captured(Exception):  # noqa: N818 - control flow, not an error
    pass


@torch.no_grad()
def sweep(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    statistics: Statistics,
    *,
    dtype: torch.dtype,
    stage: str = "calibrating",
    folder: Path | None = None,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[tuple[int, dict[str, Moments]]]:
    """Run calibration windows through a model and yield the statistics of each block, in depth order.

    Args:
        model: Causal language model, dense or compressed; it is not changed.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        statistics: What to collect for each distinct input.
        dtype: Dtype of activations and weights during the sweep.
        stage: Name of the stage in progress events.
        folder: Where the hidden states between blocks are kept now and then; a sweep of the same model, text and dtype
            that was interrupted goes on from there, and yields only the blocks that are left.
        machine: Where the blocks run; None: where the model is. Several processes divide the windows among them and
            yield the statistics of all.
        progress: Receives one event per block and window.

    Yields:
        Block index, and the moments of each distinct input of that block by name. They are taken for safe when the
        next block is asked for.

    Raises:
        NumericalError: An activation is NaN or infinite; names the projection that would read it.
        ModelError: The model hands token-dependent arguments to its blocks.
        CorpusError: There are fewer windows than processes.
    """
    machine = machine or Machine(model.device)
    calls = block_calls(model, decoder, input_ids)
    input_ids = own_windows(input_ids, machine)
    with ExitStack() as stack:
        room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
        shape = states_shape(model, decoder, input_ids)
        hidden = states_like(shape, dtype, room / f"hidden{UNFINISHED}", machine)
        waypoint = Waypoint(folder and folder / f"states{UNFINISHED}", machine.ranks)
        first = waypoint.resume(hidden)
        if not first:
            fill_first_states(model, decoder, input_ids, hidden)
        done, total = first * len(input_ids), len(decoder.blocks) * len(input_ids)
        for index, path in list(enumerate(decoder.blocks))[first:]:
            block, call = model.get_submodule(path), calls[index].to(machine.device, dtype)
            projections = [p for p in decoder.projections if p.block == index]
            with placed(block, machine.device, dtype):
                accumulators, handles = _watch(block, path, projections, statistics)
                try:
                    for window in range(len(input_ids)):
                        output = run_block(block, hidden[window : window + 1].to(machine.device), call)
                        hidden[window] = output[0]
                        done += 1
                        progress(Progress(stage, done, total, "windows x blocks"))
                finally:
                    for handle in handles:
                        handle.remove()
            yield index, {name: accumulator.finish(machine.ranks) for name, accumulator in accumulators.items()}
            waypoint.reach(index + 1, hidden)


def own_windows(input_ids: Tensor, machine: Machine) -> Tensor:
    """Return this process' share of the windows.

    Raises:
        CorpusError: There are fewer windows than processes.
    """
    ranks = machine.ranks
    if len(input_ids) < ranks.size:
        raise CorpusError(
            f"{len(input_ids)} calibration windows cannot be divided among {ranks.size} processes: use more windows "
            "(--windows), or fewer processes."
        )
    return input_ids[ranks.rank :: ranks.size]


def _watch(
    block: nn.Module, path: str, projections: list[Projection], statistics: Statistics
) -> tuple[dict[str, MomentAccumulator], list[Any]]:
    """Attach one accumulator per distinct input, to the first projection that reads it."""
    accumulators: dict[str, MomentAccumulator] = {}
    handles = []
    for projection in projections:
        if projection.input in accumulators:
            continue
        module = block.get_submodule(projection.name.removeprefix(f"{path}."))
        device = next(module.parameters()).device
        accumulator = MomentAccumulator(projection.d_in, statistics, device)
        accumulators[projection.input] = accumulator

        def hook(
            _: nn.Module,
            args: tuple[Tensor, ...],
            accumulator: MomentAccumulator = accumulator,
            name: str = projection.name,
        ) -> None:
            if not accumulator.add(args[0].flatten(0, -2)):
                raise NumericalError(
                    f"the input of {name} contains NaN or infinity: calibrate in float32 (--calibration-dtype float32) "
                    "or check the model's weights."
                )

        handles.append(module.register_forward_pre_hook(hook))
    return accumulators, handles


def run_block(block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
    """Return the hidden states that a block makes of ``hidden``, both ``[batch, length, hidden]``."""
    output = block(hidden, *call.args, **call.kwargs)
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def states_shape(model: Any, decoder: Decoder, input_ids: Tensor) -> torch.Size:
    """Return the shape of the states between two blocks, ``[windows, length, hidden]``."""
    width = _first_states(model, decoder, input_ids[0, :1]).shape[-1]
    return torch.Size((*input_ids.shape, width))


def fill_first_states(model: Any, decoder: Decoder, input_ids: Tensor, states: Tensor) -> None:
    """Put what the first block reads into ``states``, shape ``[windows, length, hidden]``."""
    for window, ids in enumerate(input_ids):
        states[window] = _first_states(model, decoder, ids)


@torch.no_grad()
def _first_states(model: Any, decoder: Decoder, ids: Tensor) -> Tensor:
    """Return what the first block reads of one window, shape ``[length, hidden]``."""
    states: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(_split_call(args, kwargs)[0][0])
        raise _Captured

    handle = model.get_submodule(decoder.blocks[0]).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model.base_model(input_ids=ids[None].to(model.device), use_cache=False)
    except _Captured:
        pass
    finally:
        handle.remove()
    return states[0]


@torch.no_grad()
def block_calls(model: Any, decoder: Decoder, input_ids: Tensor) -> list[BlockCall]:
    """Record the arguments of every block, and make sure that they do not depend on the tokens."""
    first = _record(model, decoder, input_ids[:1])
    other = _record(model, decoder, input_ids[-1:]) if len(input_ids) > 1 else first
    for path, ours, theirs in zip(decoder.blocks, first, other, strict=True):
        if not _equal((ours.args, ours.kwargs), (theirs.args, theirs.kwargs)):
            raise ModelError(f"{path} is given arguments that depend on the tokens: it cannot be calibrated alone.")
    return first


def _record(model: Any, decoder: Decoder, input_ids: Tensor) -> list[BlockCall]:
    """Record what the model hands to its blocks; only the first block is really computed, the others pass through."""
    calls: list[BlockCall] = []
    rest: list[tuple[Any, ...] | None] = []

    def first(*args: Any, _forward: Any, **kwargs: Any) -> Any:
        calls.append(_split_call(args, kwargs)[1])
        output = _forward(*args, **kwargs)
        rest.append(output[1:] if isinstance(output, tuple) else None)
        return output

    def other(*args: Any, **kwargs: Any) -> Any:
        hidden, call = _split_call(args, kwargs)
        calls.append(call)
        return hidden if rest[0] is None else (hidden, *rest[0])

    blocks = [model.get_submodule(path) for path in decoder.blocks]
    for block in blocks:
        block.forward = partial(first, _forward=block.forward) if block is blocks[0] else other
    try:
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for block in blocks:
            del block.forward
    return calls


@contextmanager
def head_only(
    model: Any, decoder: Decoder, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield a function from what the last block hands on, and the token ids, to logits, all on a device in ``dtype``.

    The model runs with blocks that pass their input on, so that norms, heads and soft caps are its own.
    """
    given: list[Tensor] = []

    def first(*_args: Any, **_kwargs: Any) -> Tensor:
        return given[0]

    def other(*args: Any, **kwargs: Any) -> Any:
        return _split_call(args, kwargs)[0]

    def head(hidden: Tensor, input_ids: Tensor) -> Tensor:
        given[:] = [hidden]
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
        return logits

    blocks = [model.get_submodule(path) for path in decoder.blocks]
    for block in blocks:
        block.forward = first if block is blocks[0] else other
    try:
        with placed_outside(model, decoder, device, dtype):
            yield head
    finally:
        for block in blocks:
            del block.forward


def _split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """Separate the hidden states (the first argument) from the rest."""
    if args:
        return args[0], BlockCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), BlockCall((), rest)


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b)
