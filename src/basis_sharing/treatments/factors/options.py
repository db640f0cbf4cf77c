"""The options of factors for one scope: all ranks in one form, priced together."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from basis_sharing.costs.base import Scope, shapes_of
from basis_sharing.costs.parameters import Parameters
from basis_sharing.recipe.planning import Form
from basis_sharing.runtime.entries_basis_sharing import Factors, factor_products, factor_tensors, most_rank
from basis_sharing.runtime.format_basis_sharing import Grid, Product, Shape, Stored
from basis_sharing.treatments.base import Options


class FactorOptions(Options):
    """Factors of one scope at several ranks.

    Args:
        members: Names of the projections.
        ranks: The ranks, ascending.
        form: Stored form of the factors, plain or pivoted.
        grid: What basis and coefficients are rounded to; None: they are not.
    """

    def __init__(
        self, members: tuple[str, ...], ranks: NDArray[np.int64], form: Form, grid: Grid | None = None
    ) -> None:
        self.members, self.ranks, self.form, self.grid = members, ranks, form, grid

    def __len__(self) -> int:
        return len(self.ranks)

    @overload
    def __getitem__(self, index: int) -> Factors: ...
    @overload
    def __getitem__(self, index: slice) -> "FactorOptions": ...
    def __getitem__(self, index: int | slice) -> "Factors | FactorOptions":
        if isinstance(index, slice):
            return FactorOptions(self.members, self.ranks[index], self.form, self.grid)
        tensors = {} if self.grid is None else dict.fromkeys(("basis.weight", "weight"), self.grid.about)
        return Factors(members=self.members, rank=int(self.ranks[index]), form=self.form, tensors=tensors)

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the stored tensors; their sizes are arrays over the ranks."""
        return factor_tensors(shapes, self.ranks, self.form, self.grid, self.grid)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products; their sizes are arrays over the ranks."""
        return factor_products(shapes, self.ranks, self.form, inputs, self.grid, self.grid)


def all_ranks(scope: Scope, form: Form) -> FactorOptions:
    """Return the options of a scope at every rank up to the highest useful one."""
    ranks = np.arange(1, most_rank(shapes_of(scope)) + 1)
    return FactorOptions(tuple(p.name for p in scope), ranks, form)


def worthwhile(scope: Scope, form: Form, multiple: int = 1) -> FactorOptions:
    """Return the options of a scope that have fewer parameters than its dense weights.

    Args:
        scope: The projections.
        form: Stored form of the factors.
        multiple: Only multiples of this are used as ranks.
    """
    shapes = shapes_of(scope)
    ranks = np.arange(multiple, most_rank(shapes), multiple)
    options, parameters = FactorOptions(tuple(p.name for p in scope), ranks, form), Parameters()
    smaller = parameters.of(scope, options) < parameters.dense(scope)
    return FactorOptions(options.members, ranks[smaller], form)
