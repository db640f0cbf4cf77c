"""Context managers that move the tensors of a model to another device or dtype temporarily."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.models.family import Decoder


@contextmanager
def placed(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Move a module to a device, and its floating-point parameters to ``dtype`` if given, inside the context.

    The original tensors are not modified and are restored on exit, so that memory-mapped weights stay memory-mapped.
    """
    with _swapped(list(module.modules()), device, dtype):
        yield


@contextmanager
def placed_outside(model: Any, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Move everything of a model outside its blocks, like :func:`placed`."""
    inside = {id(module) for path in decoder.blocks for module in model.get_submodule(path).modules()}
    with _swapped([module for module in model.modules() if id(module) not in inside], device, dtype):
        yield


@contextmanager
def _swapped(modules: list[nn.Module], device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    moved: dict[int, nn.Parameter] = {}  # by id: a parameter that several modules share stays shared
    try:
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                wanted = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
                if (parameter.device, parameter.dtype) == (device, wanted):
                    continue
                if id(parameter) not in moved:
                    data = parameter.detach().to(device, wanted)
                    moved[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
                held.append((module._parameters, name, parameter))
                module._parameters[name] = moved[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device != device:
                    held.append((module._buffers, name, buffer))
                    module._buffers[name] = buffer.to(device)
        yield
    finally:
        for entries, name, tensor in held:
            entries[name] = tensor
