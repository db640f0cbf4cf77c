"""Base class of costs: the price of an option in one currency.

Costs and treatments are independent of each other: an option lists its stored tensors and its matrix products, and each
cost is computed from these lists.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from basis_sharing.models.family import Compressible, Decoder
from basis_sharing.run.registry import Registry
from basis_sharing.runtime.format_basis_sharing import Product, Shape, Stored

Floats = NDArray[np.float64]
Scope = Sequence[Compressible]


class Priced(Protocol):
    """An option, or a sequence of options of one kind, whose sizes are then arrays."""

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the tensors that the option stores for projections of these shapes."""
        ...

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the matrix products for one token of projections that read so many different inputs."""
        ...


class Cost(ABC):
    """A currency in which options are priced.

    Attributes:
        name: Its name, e.g. ``"parameters"``.
        limit: The setting of a recipe that limits it for the whole model; None: there is none.
        unit: Units of the setting per unit of the currency.
    """

    name: ClassVar[str]
    limit: ClassVar[str | None] = None
    unit: ClassVar[float] = 1

    def __init__(self, itemsize: int = 4) -> None:
        """Initialize the cost for a model whose dtype takes ``itemsize`` bytes per number."""
        self.itemsize = itemsize

    @property
    def key(self) -> str:
        """Name of the cost and of everything that prices depend on."""
        return f"{self.name}/{self.itemsize}"

    @abstractmethod
    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the cost of an option for the projections of a scope; an array for a sequence of options."""

    @abstractmethod
    def dense(self, scope: Scope) -> float:
        """Return the cost of the dense projections of a scope."""

    @abstractmethod
    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the cost of the model outside the compressible projections."""

    def budget(self, limit: float, model: Any, decoder: Decoder) -> float:
        """Return the budget of the projections for a ``limit`` on the whole model in units of the setting."""
        return limit / self.unit - self.outside(model, decoder)

    def whole(self, projections: float, model: Any, decoder: Decoder) -> float:
        """Return the cost of the whole model in units of the setting, for a given cost of its projections."""
        return self.unit * (projections + self.outside(model, decoder))


C = TypeVar("C", bound=Cost)
COSTS: Registry[type[Cost]] = Registry("cost", "basis_sharing.costs")


def register(cls: type[C]) -> type[C]:
    """Register a cost under its name; use it as a decorator."""
    COSTS.register(cls.name, cls)
    return cls


def shapes_of(scope: Scope) -> tuple[Shape, ...]:
    """Return ``(d_in, d_out)`` of the projections of a scope."""
    return tuple((p.d_in, p.d_out) for p in scope)


def inputs_of(scope: Scope) -> int:
    """Return how many different inputs the projections of a scope read."""
    return len({(p.block, p.input) for p in scope})


def numbers(tensor: Stored) -> Any:
    """Return the number of elements of a tensor; an array if its sizes are arrays."""
    count: Any = 1
    for size in tensor.shape:
        count = count * size
    return count
