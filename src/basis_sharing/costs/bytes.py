"""Bytes: the memory that weights and buffers take, each tensor in its own dtype."""

from typing import Any

from basis_sharing.costs.base import Cost, Priced, Scope, numbers, register, shapes_of
from basis_sharing.models.family import Decoder
from basis_sharing.models.sizes import memory_bytes

_SIZES = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


@register
class Bytes(Cost):
    """Bytes of memory, limited by ``max_bytes``."""

    name = "bytes"
    limit = "max_bytes"

    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the bytes of an option, including the indices of pivots."""
        return sum(
            numbers(tensor) * (self.itemsize if tensor.dtype == "model" else _SIZES[tensor.dtype])
            for tensor in option.stored(shapes_of(scope))
        )

    def dense(self, scope: Scope) -> int:
        """Return the bytes of the dense weights."""
        return sum(p.d_in * p.d_out for p in scope) * self.itemsize

    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the bytes of the model outside the weights of the compressible projections."""
        return memory_bytes(model) - self.dense(decoder.projections)
