"""Run single decoder blocks, and the output head without the blocks.

One forward pass records the arguments that the model passes to every block besides the hidden states (masks, position
embeddings, ...). Each block can then be run on the stored outputs of the block before it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.placing import placed_outside
from basis_sharing.errors import ModelError
from basis_sharing.models.family import Decoder


@dataclass
class BlockCall:
    """The arguments that a model passes to one decoder block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device, dtype: torch.dtype) -> "BlockCall":
        """Return the arguments on a device, with floating point tensors converted to ``dtype``."""
        args, kwargs = _map_tensors(
            (self.args, self.kwargs), lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device)
        )
        return BlockCall(args, kwargs)


class _Captured(Exception):  # noqa: N818 - control flow, not an error
    pass


def run_block(block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
    """Return the output states of a block for the input states ``hidden``, both ``[batch, length, hidden]``."""
    output = block(hidden, *call.args, **call.kwargs)
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def states_shape(model: Any, decoder: Decoder, input_ids: Tensor) -> torch.Size:
    """Return the shape of the states between two blocks, ``[windows, length, hidden]``."""
    width = _first_states(model, decoder, input_ids[0, :1]).shape[-1]
    return torch.Size((*input_ids.shape, width))


def fill_first_states(model: Any, decoder: Decoder, input_ids: Tensor, states: Tensor) -> None:
    """Write the input of the first block into ``states``, shape ``[windows, length, hidden]``."""
    for window, ids in enumerate(input_ids):
        states[window] = _first_states(model, decoder, ids)


@torch.no_grad()
def _first_states(model: Any, decoder: Decoder, ids: Tensor) -> Tensor:
    """Return the input of the first block for one window, shape ``[length, hidden]``."""
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
    """Return the arguments of every block.

    Raises:
        ModelError: The arguments of a block depend on the tokens (compared for the first and the last window).
    """
    first = _record(model, decoder, input_ids[:1])
    other = _record(model, decoder, input_ids[-1:]) if len(input_ids) > 1 else first
    for path, ours, theirs in zip(decoder.blocks, first, other, strict=True):
        if not _equal((ours.args, ours.kwargs), (theirs.args, theirs.kwargs)):
            raise ModelError(f"{path} is given arguments that depend on the tokens: it cannot be calibrated alone.")
    return first


def _record(model: Any, decoder: Decoder, input_ids: Tensor) -> list[BlockCall]:
    """Return the arguments of every block; the first block is computed, the others return their input."""
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
    """Yield a function that maps the last block's output and the token ids to logits.

    The function calls the model with its blocks replaced by the identity, so that final norm, head and soft cap are the
    model's own. Inside the context, everything outside the blocks is on ``device`` in ``dtype``.
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
    """Return the hidden states (the first argument) and the other arguments of a block."""
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
