"""Computation of the factors of one group from the weights and weightings of its members."""

from collections.abc import Sequence

import torch

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.pivoting import pivot
from basis_sharing.linalg.truncation import Member, Truncation, loss_of
from basis_sharing.runtime.entries_basis_sharing import Factors, factor_products, factor_tensors
from basis_sharing.runtime.format_basis_sharing import Shape
from basis_sharing.treatments.base import Outcome
from basis_sharing.treatments.factors.outcome import GroupFactors
from basis_sharing.weightings.base import ridge_of


def solve_factors(problem: Sequence[Member], entry: Factors, dtype: torch.dtype, truncation: Truncation) -> Outcome:
    """Return the outcome of a group at the rank and in the form of its entry.

    Pivoted factors are replaced by plain ones of at most the same cost, with a note, if the basis cannot be pivoted or
    if the plain ones have the smaller error after rounding to ``dtype``.

    Args:
        problem: The members with their weightings.
        entry: The entry, with rank and form.
        dtype: Dtype of the factors.
        truncation: The decomposition of the group at all ranks.
    """
    notes: list[str] = []
    if entry.form == "pivoted":
        factors, reason = _pivoted(entry, problem, truncation, dtype)
        if reason is not None:
            notes.append(f"{entry.owner} is stored plainly: {reason}.")
    else:
        factors = _plain(entry.members, truncation, entry.rank, dtype)
    ridge = max(ridge_of(member.S) for member in problem)
    if ridge > 0:
        notes.append(
            f"the second moment of {entry.owner} is not positive definite; a ridge of {ridge:.0e} of its mean diagonal "
            "was added."
        )
    loss = truncation.losses[factors.rank].item()
    relative = loss / truncation.total if truncation.total > 0 else 0.0
    return Outcome(factors.entry(), factors.tensors(), loss, relative, ridge, tuple(notes))


def _plain(members: tuple[str, ...], truncation: Truncation, rank: int, dtype: torch.dtype) -> GroupFactors:
    coefficients = tuple(C.to("cpu", dtype) for C in truncation.coefficients(rank))
    return GroupFactors(members, truncation.basis[:, :rank].to("cpu", dtype), coefficients)


def _pivoted(
    entry: Factors, problem: Sequence[Member], truncation: Truncation, dtype: torch.dtype
) -> tuple[GroupFactors, str | None]:
    """Return pivoted factors and None, or plain factors of at most the same cost and the reason for choosing them."""
    shapes = [member.shape for member in problem]
    plain_rank = _plain_rank(shapes, entry.rank)

    def plain() -> GroupFactors:
        return _plain(entry.members, truncation, plain_rank, dtype)

    try:
        pivoting = pivot(truncation.basis[:, : entry.rank])
    except NumericalError:
        return plain(), "its basis has dependent columns"

    def stored_error(factors: GroupFactors) -> float:
        """Return the loss of the factors after rounding."""
        B = factors.full_basis().to(truncation.basis)
        pairs = zip(problem, factors.coefficients, strict=True)
        return sum(loss_of(member, member.W - B @ C.to(B)) for member, C in pairs)

    coefficients = tuple((pivoting.transform @ C).to("cpu", dtype) for C in truncation.coefficients(entry.rank))
    pivoted = GroupFactors(entry.members, pivoting.stored.to("cpu", dtype), coefficients, pivoting.pivots.cpu())
    larger = _parameters(shapes, plain_rank, "plain") > _parameters(shapes, entry.rank, "pivoted")  # rank 1
    error = stored_error(pivoted)
    # The loss of plain factors before rounding is a lower bound in practice; it avoids computing them in most cases.
    surely_better = error <= truncation.losses[plain_rank].item()
    if not (larger or surely_better):
        other = plain()
        if error > stored_error(other):
            return other, f"rounding to {str(dtype).removeprefix('torch.')} costs it more than the higher rank gains"
    return pivoted, None


def _plain_rank(shapes: Sequence[Shape], rank: int) -> int:
    """Return the highest rank at which plain factors need no more than pivoted ones of ``rank``, but at least 1.

    Neither parameters nor multiplications may increase, because the plan may have a limit on either.
    """
    parameters = _parameters(shapes, rank, "pivoted") // _parameters(shapes, 1, "plain")
    products = _multiplications(shapes, rank, "pivoted") // _multiplications(shapes, 1, "plain")
    return max(1, min(parameters, products))


def _parameters(shapes: Sequence[Shape], rank: int, form: str) -> int:
    tensors = (tensor for tensor in factor_tensors(shapes, rank, form) if not tensor.buffer)
    return sum(tensor.shape[0] * tensor.shape[1] for tensor in tensors)


def _multiplications(shapes: Sequence[Shape], rank: int, form: str) -> int:
    """Return the multiplications if all members read different inputs, where plain factors compare worst."""
    products = factor_products(shapes, rank, form, len(shapes))
    return sum(product.d_in * product.d_out * product.times for product in products)
