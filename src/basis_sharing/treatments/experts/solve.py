"""Experts at a smaller width."""

from typing import TypeAlias

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.truncation import Member, truncate
from basis_sharing.runtime.expert_entries_basis_sharing import Narrow
from basis_sharing.runtime.experts_basis_sharing import at_width, side_of
from basis_sharing.treatments.base import Outcome
from basis_sharing.treatments.experts.problem import Around
from basis_sharing.weightings.base import ridge_of

Factored: TypeAlias = tuple[Tensor, Tensor, float, float]
"""B and C of an identity I ~ B C, the loss, and the loss at rank 0."""


def solve_experts(problem: Around, entry: Narrow, dtype: torch.dtype) -> Outcome:
    """Return the two bases, and the experts at the width of an entry.

    Args:
        problem: The experts with their weightings.
        entry: The entry.
        dtype: Dtype in which tensors are stored.

    Raises:
        NumericalError: A weight contains NaN or infinity.
    """
    A, C, lost, all_of_it = _factored(problem.reads, entry.width)
    A, C = _orthonormal(A, C)
    D, Z, lost_after, all_after = _factored(problem.writes, entry.width)
    Z, D = (M.T for M in _orthonormal(Z.T, D.T))
    matrices = {"input": C.T, "output": D}
    tensors = {
        f"{entry.owner}.input_basis.weight": A.T.to("cpu", dtype),
        f"{entry.owner}.output_basis.weight": Z.T.to("cpu", dtype),
    }
    for name, weight in problem.weights.items():
        tensors[f"{entry.owner}.{name}"] = _narrowed(weight, problem.axes.get(name), matrices[side_of(name)])
    loss, total = lost + lost_after, all_of_it + all_after
    ridge = max(ridge_of(problem.reads.S), ridge_of(problem.writes.S))
    return Outcome(entry, tensors, loss, loss / total if total > 0 else 0.0, ridge)


def _factored(identity: Member, rank: int) -> Factored:
    found = truncate([identity])
    (C,) = found.coefficients(rank)
    return found.basis[:, :rank], C, found.losses[rank].item(), found.total


def _orthonormal(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose first one has orthonormal columns, so that numbers keep their size."""
    Q, R = torch.linalg.qr(B)
    return Q, R @ C


def _narrowed(weight: Tensor, axis: int | None, M: Tensor) -> Tensor:
    """Return a weight of all experts with one axis multiplied by a matrix, in its dtype; one expert at a time.

    Raises:
        NumericalError: It contains NaN or infinity.
    """
    if not torch.isfinite(weight).all():
        raise NumericalError("a weight of the experts contains NaN or infinity: the model is damaged.")
    if axis is None:
        return weight.cpu().clone()
    own = [at_width(one.to(M), axis - 1, M).to("cpu", weight.dtype) for one in weight]
    return torch.stack(own)
