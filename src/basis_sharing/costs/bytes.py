"""Bytes: the memory that weights and buffers take, each tensor in its own dtype."""

from typing import Any

from basis_sharing.costs.base import Cost, Priced, Scope, numbers, register, shapes_of
from basis_sharing.models.family import Decoder
from basis_sharing.runtime.format_basis_sharing import Stored


@register
class Bytes(Cost):
    """Bytes of memory, limited by ``max_bytes``."""

    name = "bytes"
    limit = "max_bytes"

    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the bytes of an option, the indices of pivots included."""
        return sum(size_of(tensor, self.itemsize) for tensor in option.stored(shapes_of(scope)))

    def dense(self, scope: Scope) -> int:
        """Return the bytes of the dense weights."""
        return sum(p.d_in * p.d_out for p in scope) * self.itemsize

    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the bytes of the model outside the weights of the compressible projections."""
        from basis_sharing.models.sizes import memory_bytes  # torch, which reading a plan does not need

        return memory_bytes(model) - self.dense(decoder.parts)


def size_of(tensor: Stored, itemsize: int) -> Any:
    """Return the bytes of a tensor, in a model whose numbers take ``itemsize`` bytes."""
    if tensor.dtype == "model":
        return numbers(tensor) * itemsize
    import torch

    return numbers(tensor) * getattr(torch, tensor.dtype).itemsize
