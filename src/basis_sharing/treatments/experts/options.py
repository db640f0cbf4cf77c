"""The options of experts: all smaller widths, priced together."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from basis_sharing.costs.parameters import Parameters
from basis_sharing.models.family import Experts
from basis_sharing.runtime.expert_entries_basis_sharing import Narrow, narrow_products, narrow_tensors
from basis_sharing.runtime.format_basis_sharing import Product, Shape, Stored
from basis_sharing.treatments.base import Options


class Widths(Options):
    """The experts of one block at several widths.

    Args:
        experts: The experts.
        widths: The widths, ascending.
    """

    def __init__(self, experts: Experts, widths: NDArray[np.int64]) -> None:
        self.experts, self.widths = experts, widths

    def __len__(self) -> int:
        return len(self.widths)

    @overload
    def __getitem__(self, index: int) -> Narrow: ...
    @overload
    def __getitem__(self, index: slice) -> "Widths": ...
    def __getitem__(self, index: int | slice) -> "Narrow | Widths":
        if isinstance(index, slice):
            return Widths(self.experts, self.widths[index])
        e = self.experts
        width = int(self.widths[index])
        return Narrow(members=(e.name,), width=width, count=e.count, active=e.active, weights=e.weights)

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the stored tensors; their sizes are arrays over the widths."""
        return narrow_tensors(shapes[0], self.widths)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products; their sizes are arrays over the widths."""
        return narrow_products(shapes[0], self.widths, self.experts.count, self.experts.active)


def smaller_widths(experts: Experts, multiple: int) -> Widths:
    """Return the options at all multiples of a number at which narrow experts have fewer parameters."""
    widths = np.arange(multiple, experts.d_in, multiple)
    options, parameters = Widths(experts, widths), Parameters()
    smaller = parameters.of((experts,), options) < parameters.dense((experts,))
    return Widths(experts, widths[smaller])
