"""What a cost is: the price of an option in one currency, from the tensors and the products that the option names.

A cost knows no treatment, and a treatment knows no cost: an option names its tensors and its products, and every
currency counts them in its own way.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.registry import Registry
from basis_sharing.runtime.format_basis_sharing import Product, Shape, Stored

Floats = NDArray[np.float64]
Scope = Sequence[Projection]


class Priced(Protocol):
    """An option, or many of one kind at once, whose sizes are arrays then."""

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return its tensors."""
        ...

    def products(self, shapes: Sequence[Shape]) -> tuple[Product, ...]:
        """Return its products for one token."""
        ...


class Cost(ABC):
    """A currency.

    Attributes:
        name: Its name, e.g. ``"parameters"``.
        limit: The setting of a recipe that limits it for the whole model; None: there is none.
        unit: What one of the setting's units is, in units of the currency.
    """

    name: ClassVar[str]
    limit: ClassVar[str | None] = None
    unit: ClassVar[float] = 1

    def __init__(self, itemsize: int = 4) -> None:
        """Price a model whose numbers take ``itemsize`` bytes."""
        self.itemsize = itemsize

    @abstractmethod
    def of(self, scope: Scope, option: Priced) -> Any:
        """Return what an option costs for the projections of a scope; an array for many options."""

    @abstractmethod
    def dense(self, scope: Scope) -> int:
        """Return what the projections of a scope cost as they are."""

    @abstractmethod
    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return what the rest of the model costs."""

    def budget(self, limit: float, model: Any, decoder: Decoder) -> float:
        """Return what the projections may cost if the whole model may cost ``limit``, in the units of the setting."""
        return limit / self.unit - self.outside(model, decoder)

    def whole(self, projections: float, model: Any, decoder: Decoder) -> float:
        """Return what the whole model costs if its projections cost so much, in the units of the setting."""
        return self.unit * (projections + self.outside(model, decoder))


COSTS: Registry[type[Cost]] = Registry("cost", "basis_sharing.costs")


def register(cls: type[Cost]) -> type[Cost]:
    """Register a cost under its name; use it as a decorator."""
    return COSTS.register(cls.name, cls)


def shapes_of(scope: Scope) -> tuple[Shape, ...]:
    """Return ``(d_in, d_out)`` of the projections of a scope."""
    return tuple((p.d_in, p.d_out) for p in scope)


def numbers(tensor: Stored) -> Any:
    """Return how many numbers a tensor has."""
    count: Any = 1
    for size in tensor.shape:
        count = count * size
    return count
