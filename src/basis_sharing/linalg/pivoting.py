"""Pivoted factors: k rows of the basis are the identity, so a rank-k product of [a, b] stores k(a + b) - k^2 numbers.

B C = (B M)(M^-1 C) for every invertible M. With M = B_P^-1 for k rows P of B, the rows P of B M are the identity and
need not be stored, and x B M = x_P + x_R (B M)_R needs fewer multiplications than x B. In exact arithmetic any k rows
with an invertible B_P are suitable; :func:`pivot` chooses rows that bound every stored entry by 1.05, which keeps the
rounding error of low-precision dtypes small.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from basis_sharing.errors import NumericalError

_BOUND = 1.05
_MOST_SWAPS_PER_ROW = 20
_MOST_AT_ONCE = 128


@dataclass(frozen=True)
class Pivoting:
    """A basis in pivoted form.

    Attributes:
        pivots: Sorted indices of the rows that are the identity, int64, shape ``[k]``.
        rest: Sorted indices of the other rows, int64, shape ``[d_in - k]``.
        stored: The other rows of B B_P^-1, shape ``[d_in - k, k]``; no entry exceeds 1.05.
        transform: B_P, shape ``[k, k]``; the coefficients that belong to the pivoted basis are B_P C.
    """

    pivots: Tensor
    rest: Tensor
    stored: Tensor
    transform: Tensor

    def basis(self) -> Tensor:
        """Return B B_P^-1, shape ``[d_in, k]``."""
        return assemble(self.pivots, self.rest, self.stored)


def assemble(pivots: Tensor, rest: Tensor, stored: Tensor) -> Tensor:
    """Return the complete basis, shape ``[d_in, k]``: the identity in the rows ``pivots``, ``stored`` in ``rest``."""
    k = len(pivots)
    full = stored.new_empty(k + len(rest), k)
    full[pivots] = torch.eye(k, dtype=stored.dtype, device=stored.device)
    full[rest] = stored
    return full


def pivot(basis: Tensor) -> Pivoting:
    """Return the pivoted form of a basis, with k rows of nearly maximal volume as pivots.

    The initial rows come from LU with partial pivoting; rows are then exchanged, many at a time, as long as an exchange
    enlarges the volume by more than 5 % (maxvol, Goreinov et al. 2010). No entry of the resulting B B_P^-1 exceeds
    1.05.

    Args:
        basis: B, shape ``[d_in, k]``, k < d_in, fp64, of full column rank.

    Raises:
        NumericalError: The columns of B are linearly dependent.
    """
    d_in, k = basis.shape
    # The choice depends only on the span of B; orthonormal columns make it independent of the scale of B.
    Q, R = torch.linalg.qr(basis)
    diagonal = R.diagonal().abs()
    if not torch.isfinite(R).all() or diagonal.min() <= 1e-13 * diagonal.max():
        raise NumericalError("the columns of a basis are linearly dependent: it cannot be pivoted.")
    chosen = _lu_rows(Q)
    ratio = torch.linalg.solve(Q[chosen], Q, left=False)
    most = _MOST_SWAPS_PER_ROW * k
    while most > 0:
        rows, columns = _exchanges(ratio)
        if not len(rows):
            break
        exchanged = ratio[rows]
        exchanged[torch.arange(len(rows), device=rows.device), columns] -= 1
        ratio -= ratio[:, columns] @ torch.linalg.solve(ratio[rows][:, columns], exchanged)
        chosen[columns] = rows
        most -= len(rows)
    pivots = chosen.sort().values
    rest = torch.ones(d_in, dtype=torch.bool, device=basis.device).index_fill_(0, pivots, False).nonzero()[:, 0]
    # Solve again from the original basis: the updates above accumulate rounding errors.
    transform = basis[pivots]
    stored = torch.linalg.solve(transform, basis[rest], left=False)
    return Pivoting(pivots=pivots, rest=rest, stored=stored, transform=transform)


def _lu_rows(Q: Tensor) -> Tensor:
    """Return the rows that LU with partial pivoting chooses first, int64, shape ``[k]``."""
    _, swaps = torch.linalg.lu_factor(Q)
    order = list(range(len(Q)))
    for position, other in enumerate((swaps - 1).tolist()):
        order[position], order[other] = order[other], order[position]
    return torch.tensor(order[: Q.shape[1]], device=Q.device)


def _exchanges(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and the columns whose pivots they replace; none if no entry exceeds the bound.

    The candidates are the largest entries of the columns, at most one in a row. They are exchanged one after the other
    in the matrix of the candidates alone, each time the largest one, as long as it exceeds the bound: what is returned
    enlarges the volume by the product of these entries.

    Args:
        ratio: B B_P^-1, shape ``[d_in, k]``.
    """
    values, places = ratio.abs().max(0)
    order = values.argsort(descending=True)[:_MOST_AT_ONCE]
    candidates: dict[int, int] = {}
    for value, row, column in zip(values[order].tolist(), places[order].tolist(), order.tolist(), strict=True):
        if value > _BOUND:
            candidates.setdefault(row, column)
    rows = torch.tensor(list(candidates), dtype=torch.int64, device=ratio.device)
    columns = torch.tensor(list(candidates.values()), dtype=torch.int64, device=ratio.device)
    taken = _eliminated(ratio[rows][:, columns].cpu().numpy())
    return rows[taken], columns[taken]


def _eliminated(block: NDArray[np.float64]) -> list[int]:
    """Return the diagonal entries that Gaussian elimination takes as pivots, the largest first, while above the bound.

    Args:
        block: A square matrix; overwritten.
    """
    taken: list[int] = []
    left = np.ones(len(block), dtype=bool)
    while left.any():
        sizes = np.where(left, np.abs(block.diagonal()), 0.0)
        place = int(sizes.argmax())
        if sizes[place] <= _BOUND:
            break
        taken.append(place)
        left[place] = False
        block -= np.outer(block[:, place] / block[place, place], block[place])
    return taken
