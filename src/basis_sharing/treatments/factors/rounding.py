"""Factors in few bits: the basis is rounded first, the coefficients are refitted to what it has become, then rounded.

The basis is rounded in the metric of the inputs that it meets. The best coefficients for a basis B are
(B^T G B)^-1 B^T G W, and an error dC of theirs loses tr(dC^T B^T G B dC H), so they are rounded in the metric B^T G B.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.pivoting import assemble, pivot
from basis_sharing.linalg.rounding import Rounded, with_feedback
from basis_sharing.linalg.truncation import Member, Truncation, loss_of
from basis_sharing.linalg.whitening import positive_cholesky
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import encode_pivots
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.treatments.base import Floats, Outcome
from basis_sharing.treatments.rounded import scale_dtype, stored_tensors

_SAMPLED = (0.2, 0.45, 0.7)
"""Ranks, as parts of the highest, at which the cost of rounding is measured."""


def sampled_ranks(most: int) -> list[int]:
    """Return the ranks at which rounding is measured, for the highest useful rank of a group."""
    return sorted({max(1, round(part * most)) for part in _SAMPLED})


def rounding_losses(
    member: Member, truncation: Truncation, form: str, grids: Sequence[Grid], dtype: torch.dtype
) -> dict[Grid, Floats]:
    """Return what rounding costs beside the rank, by grid, at the sampled ranks, in the unit of the weighting.

    Args:
        member: The only member of the group.
        truncation: Its decomposition.
        form: Form of the factors.
        grids: What basis and coefficients are rounded to.
        dtype: Dtype of the scales.
    """
    ranks = sampled_ranks(len(truncation.losses) - 1)
    found = {grid: np.zeros(len(ranks)) for grid in grids}
    for place, rank in enumerate(ranks):
        for grid, factors in zip(grids, _rounded([member], truncation, rank, form, grids, dtype), strict=True):
            found[grid][place] = factors.loss([member]) - truncation.losses[rank].item()
    return found


def between_samples(excess: Floats, ranks: NDArray[np.int64], most: int) -> Floats:
    """Return what rounding costs at ranks, from what it costs at the sampled ones; linear between them and from 0."""
    known = np.array([0, *sampled_ranks(most)], dtype=float)
    values: Floats = np.interp(ranks, known, np.array([0.0, *excess]))
    beyond = ranks > known[-1]
    values[beyond] = excess[-1] * ranks[beyond] / known[-1]
    return values


def solve_rounded(problem: Sequence[Member], entry: Factors, dtype: torch.dtype, truncation: Truncation) -> Outcome:
    """Return the outcome of a group in few bits, at the rank and in the form of its entry."""
    grid = entry.basis_grid
    assert grid is not None
    (factors,) = _rounded(problem, truncation, entry.rank, entry.form, [grid], dtype)
    loss = factors.loss(problem)
    code = None if factors.pivots is None else encode_pivots(factors.pivots, problem[0].shape[0])
    form = "plain" if factors.pivots is None else "pivoted"
    relative = loss / truncation.total if truncation.total > 0 else 0.0
    return Outcome(replace(entry, form=form, pivots=code), factors.tensors(entry, dtype), loss, relative)


class _RoundedFactors:
    """Factors of a group in few bits.

    Args:
        basis: The stored rows of B, transposed.
        full: B, all rows, shape ``[d_in, rank]``, fp64.
        coefficients: Those of every member, transposed.
        pivots: Indices of the rows that are the identity; None: plain.
    """

    def __init__(self, basis: Rounded, full: Tensor, coefficients: Sequence[Rounded], pivots: Tensor | None) -> None:
        self.basis, self.full, self.coefficients, self.pivots = basis, full, coefficients, pivots

    def loss(self, problem: Sequence[Member]) -> float:
        """Return the loss of the group."""
        pairs = zip(problem, self.coefficients, strict=True)
        return sum(loss_of(member, member.W - self.full @ C.matrix().T.to(self.full)) for member, C in pairs)

    def tensors(self, entry: Factors, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors by their names on disk."""
        found = stored_tensors(f"{entry.owner}.basis.weight", self.basis, dtype)
        for name, C in zip(entry.members, self.coefficients, strict=True):
            found |= stored_tensors(f"{name}.weight", C, dtype)
        return found


def _rounded(
    problem: Sequence[Member], truncation: Truncation, rank: int, form: str, grids: Sequence[Grid], dtype: torch.dtype
) -> list[_RoundedFactors]:
    """Return the factors of a group at a rank, rounded to several grids."""
    B = truncation.basis[:, :rank].double()
    pivots, rest, stored = _parted(B, form)
    G = sum((member.G for member in problem[1:]), problem[0].G)
    met = G[rest][:, rest]
    matrix = stored.T.float().contiguous()
    found = []
    for basis in with_feedback(matrix, grids, met, stored=scale_dtype(dtype)):
        shared = basis.matrix().T.double()
        full = shared if pivots is None else assemble(pivots, rest, shared)
        coefficients = [_coefficients(member, full, basis.grid, dtype) for member in problem]
        found.append(_RoundedFactors(basis, full, coefficients, pivots))
    return found


def _parted(B: Tensor, form: str) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the pivots, the other rows, and the stored rows of a basis; plain if it cannot be pivoted."""
    if form == "pivoted":
        try:
            pivoting = pivot(B)
        except NumericalError:
            pass
        else:
            return pivoting.pivots, pivoting.rest, pivoting.stored
    # Plain factors have a free scale, which does not matter to a grid: columns of length 1.
    return None, torch.arange(len(B), device=B.device), B / B.norm(dim=0).clamp_min(1e-30)


def _coefficients(member: Member, B: Tensor, grid: Grid, dtype: torch.dtype) -> Rounded:
    """Return the coefficients of a member for a rounded basis, rounded, transposed."""
    GB = member.G @ B
    M = B.T @ GB
    C = torch.cholesky_solve(GB.T @ member.W, positive_cholesky(M)[0]).T.float().contiguous()
    return with_feedback(C, [grid], M, stored=scale_dtype(dtype))[0]
