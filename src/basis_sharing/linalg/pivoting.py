"""Pivoted factors: k rows of the basis are the identity, so a rank-k product of [a, b] stores k(a + b) - k^2 numbers.

B C = (B M)(M^-1 C) for every invertible M. With M = B_P^-1 for k rows P of B, the rows P of B M are the identity and
need not be stored, and x B M = x_P + x_R (B M)_R needs fewer multiplications than x B. In exact arithmetic any k rows
with an invertible B_P are suitable; :func:`pivot` chooses rows that bound every stored entry by 1.05, which keeps the
rounding error of low-precision dtypes small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError

_BOUND = 1.05
_MOST_SWAPS_PER_ROW = 20


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

    The initial rows come from LU with partial pivoting; rows are then exchanged as long as an exchange enlarges the
    volume by more than 5 % (maxvol, Goreinov et al. 2010). No entry of the resulting B B_P^-1 exceeds 1.05.

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
    order = _lu_order(Q)
    chosen = order[:k].clone()
    ratio = torch.linalg.solve(Q[chosen], Q, left=False)
    for _ in range(_MOST_SWAPS_PER_ROW * k):
        largest = int(ratio.abs().argmax())
        row, column = divmod(largest, k)
        value = ratio[row, column].item()
        if abs(value) <= _BOUND:
            break
        difference = ratio[row].clone()
        difference[column] -= 1
        ratio -= torch.outer(ratio[:, column] / value, difference)
        chosen[column] = row
    pivots = chosen.sort().values
    rest = torch.ones(d_in, dtype=torch.bool, device=basis.device).index_fill_(0, pivots, False).nonzero()[:, 0]
    # Solve again from the original basis: the rank-one updates above accumulate rounding errors.
    transform = basis[pivots]
    stored = torch.linalg.solve(transform, basis[rest], left=False)
    return Pivoting(pivots=pivots, rest=rest, stored=stored, transform=transform)


def _lu_order(Q: Tensor) -> Tensor:
    """Return the row order that LU with partial pivoting chooses, int64, shape ``[d_in]``."""
    _, swaps = torch.linalg.lu_factor(Q)
    order = torch.arange(len(Q))
    for position, other in enumerate((swaps - 1).tolist()):
        order[[position, other]] = order[[other, position]]
    return order.to(Q.device)
