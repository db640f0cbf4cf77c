"""The arguments with which a model calls its decoder blocks, and the states between blocks.

A forward pass records the arguments that the model passes to every block besides the hidden states (masks, position
embeddings, ...). Each block can then be run on the stored outputs of the block before it.

Some architectures pass arguments that depend on the tokens (per-layer inputs of Gemma 3n, token ids of DeepSeek V4) or
on the blocks before (keys and values that several blocks share, the tokens an indexer has chosen). They are recorded
for every window, and are constants for the block that reads them: gradients do not flow through them.
"""

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.states import StatesShape, states_like
from basis_sharing.errors import ModelError
from basis_sharing.models.family import Decoder
from basis_sharing.run.durable import UNFINISHED
from basis_sharing.run.machine import Machine

_PLAIN = (type(None), bool, int, float, str)


@dataclass
class BlockCall:
    """The arguments that a model passes to one decoder block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor among the arguments; tensors that several blocks are given have one slot."""

    index: int


@dataclass
class _Recording:
    """The calls of all blocks for one window, with slots in place of tensors."""

    calls: list[BlockCall] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    returned: Any = None
    mutable: bool = False  # whether blocks are given something in which they may leave a result for later blocks

    def add(self, call: BlockCall) -> None:
        """Add the call of the next block."""

        def slot(tensor: Tensor) -> _Slot:
            index = next((i for i, known in enumerate(self.tensors) if known is tensor), len(self.tensors))
            if index == len(self.tensors):
                self.tensors.append(tensor)
            return _Slot(index)

        args, kwargs = _mapped((call.args, call.kwargs), Tensor, slot)
        self.mutable = self.mutable or any(_mutable(value) for value in (*args, *kwargs.values()))
        self.calls.append(BlockCall(args, kwargs))

    def has_form_of(self, other: "_Recording") -> bool:
        """Return whether all arguments but tensors are the same."""
        return all(_equal((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in zip(self.calls, other.calls, strict=True))

    def differing(self, other: "_Recording") -> list[int]:
        """Return the slots of the tensors that differ from those of a recording of the same form."""
        pairs = enumerate(zip(self.tensors, other.tensors, strict=True))
        return [index for index, (a, b) in pairs if a.shape != b.shape or not torch.equal(a, b)]


class BlockCalls:
    """The arguments of every block for every window.

    Attributes:
        returned: What a block returned in the recorded pass; states are wrapped like it by :meth:`wrapped`.
    """

    def __init__(self, recording: _Recording, rows: Mapping[int, Tensor]) -> None:
        self._calls, self._tensors, self._rows = recording.calls, recording.tensors, rows
        self.returned = recording.returned

    def of(self, block: int, device: torch.device, dtype: torch.dtype) -> Callable[[int], BlockCall]:
        """Return a function that maps a window to the arguments of a block.

        Tensors are on ``device``, those with floating-point numbers in ``dtype``.
        """
        call, common = self._calls[block], dict[int, Tensor]()

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        def arguments(window: int) -> BlockCall:
            def tensor(slot: _Slot) -> Tensor:
                if slot.index in self._rows:
                    return moved(self._rows[slot.index][window])
                if slot.index not in common:
                    common[slot.index] = moved(self._tensors[slot.index])
                return common[slot.index]

            return BlockCall(*_mapped((call.args, call.kwargs), _Slot, tensor))

        return arguments

    def wrapped(self, states: Tensor) -> Any:
        """Return states in the form in which a block returns them: alone, or first in a tuple or list."""
        return _wrapped(states, self.returned)


class _Captured(Exception):  # noqa: N818 - control flow, not an error
    pass


def run_block(block: nn.Module, states: Tensor, call: BlockCall) -> Tensor:
    """Return the output states of a block for the input states, both ``[1, length, hidden]`` for most models."""
    output = block(states, *call.args, **call.kwargs)
    states = output[0] if isinstance(output, (tuple, list)) else output
    return states


def read_by(block: nn.Module, name: str, states: Tensor, call: BlockCall) -> Tensor:
    """Return the input of a module of a block, shape ``[tokens, d_in]``; the block is run only up to that module."""
    inputs: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0].flatten(0, -2))
        raise _Captured

    handle = block.get_submodule(name).register_forward_pre_hook(hook)
    try:
        run_block(block, states, call)
    except _Captured:
        pass
    finally:
        handle.remove()
    return inputs[0]


def states_shape(model: Any, decoder: Decoder, input_ids: Tensor) -> StatesShape:
    """Return the shape of the states between two blocks for windows of token ids, ``[windows, length]``."""
    one, two = (_first_states(model, decoder, input_ids[0, :count]).shape for count in (1, 2))
    tokens = next((dim for dim, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), 1)
    windows, length = input_ids.shape
    window = torch.Size(size + length - 1 if dim == tokens else size for dim, size in enumerate(one))
    return StatesShape(window, tokens, length, windows)


@torch.no_grad()
def fill_first_states(model: Any, decoder: Decoder, input_ids: Tensor, states: Tensor) -> None:
    """Write the input of the first block for every window into ``states``, whose first dimension is the window."""
    for window, ids in enumerate(input_ids):
        states[window] = _first_states(model, decoder, ids)


@torch.no_grad()
def _first_states(model: Any, decoder: Decoder, ids: Tensor) -> Tensor:
    """Return the input of the first block for one window."""
    states: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(split_call(args, kwargs)[0])
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
def block_calls(
    model: Any, decoder: Decoder, input_ids: Tensor, *, folder: Path | None = None, machine: Machine | None = None
) -> BlockCalls:
    """Return the arguments of every block for windows of token ids.

    Whether arguments depend on the tokens is decided on the first and the last window.

    Args:
        model: The model.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        folder: Where arguments that differ between windows are kept if memory is short.
        machine: The machine, for its memory limits; None: they are kept in memory.

    Raises:
        ModelError: A block is given arguments of another form for other tokens.
    """
    first = _record(model, decoder, input_ids[:1])
    last = _record(model, decoder, input_ids[-1:]) if len(input_ids) > 1 else first
    if not first.mutable and first.has_form_of(last) and not first.differing(last):
        return BlockCalls(first, {})
    record, computed = _record, partial(_record, computed=True)
    whole = computed(model, decoder, input_ids[:1])
    if not whole.has_form_of(first) or whole.differing(first):
        first, record = whole, computed
    rows: dict[int, Tensor] = {}
    for window in range(1, len(input_ids)):
        own = record(model, decoder, input_ids[window : window + 1])
        if not own.has_form_of(first):
            raise ModelError(
                f"{decoder.blocks[0].rpartition('.')[0]} is given arguments of another form for other tokens, so its "
                "blocks cannot be calibrated one by one: use --method svd, which needs no text."
            )
        for slot in {*rows, *own.differing(first)}:
            if slot not in rows:
                rows[slot] = _buffer(first.tensors[slot], len(input_ids), slot, folder, machine)
            rows[slot][window] = own.tensors[slot]
    return BlockCalls(first, rows)


def _buffer(tensor: Tensor, windows: int, slot: int, folder: Path | None, machine: Machine | None) -> Tensor:
    """Return a buffer for the tensors of all windows, filled with that of the first one."""
    shape = torch.Size((windows, *tensor.shape))
    if folder is None or machine is None:
        return tensor.expand(shape).clone()
    buffer = states_like(shape, tensor.dtype, folder / f"arguments-{slot}{UNFINISHED}", machine)
    buffer[:] = tensor
    return buffer


def _record(model: Any, decoder: Decoder, input_ids: Tensor, *, computed: bool = False) -> _Recording:
    """Record the calls of all blocks for one window.

    Only the first block is computed, and the others return their input, unless all are to be ``computed``.
    """
    found = _Recording()

    def called(*args: Any, _forward: Any, _index: int, **kwargs: Any) -> Any:
        states, call = split_call(args, kwargs)
        found.add(call)
        if _index and not computed:
            return _wrapped(states, found.returned)
        output = _forward(*args, **kwargs)
        if not _index:
            found.returned = output
        return output

    with replaced_blocks(model, decoder, called):
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    return found


@contextmanager
def replaced_blocks(model: Any, decoder: Decoder, forward: Callable[..., Any]) -> Iterator[None]:
    """Let every block call ``forward`` with its arguments, its ``_index`` and its own ``_forward``, in the context."""
    blocks = [model.get_submodule(path) for path in decoder.blocks]
    for index, block in enumerate(blocks):
        block.forward = partial(forward, _forward=block.forward, _index=index)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """Return the hidden states (the first argument) and the other arguments of a block."""
    if args:
        return args[0], BlockCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), BlockCall((), rest)


def _wrapped(states: Tensor, like: Any) -> Any:
    if isinstance(like, (tuple, list)):
        return type(like)((states, *like[1:]))
    return states


def _mutable(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_mutable, value))
    return not isinstance(value, (*_PLAIN, _Slot))


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return a copy of nested containers in which every item of a kind is replaced by the function of it."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (dict, UserDict)):
        mapping = {key: _mapped(item, kind, function) for key, item in value.items()}
        return mapping if isinstance(value, dict) else type(value)(mapping)
    if isinstance(value, (tuple, list)):
        items = [_mapped(item, kind, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (dict, UserDict)) and isinstance(b, (dict, UserDict)):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (*_PLAIN, _Slot)):
        return bool(a == b)
    return type(a) is type(b)
