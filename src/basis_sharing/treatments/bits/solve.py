"""Rounding of the weight of one projection."""

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.rounding import Rounded, loss_of_error, nearest, scales_of, with_feedback
from basis_sharing.linalg.truncation import Member
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.treatments.base import Outcome
from basis_sharing.treatments.rounded import scale_dtype, stored_tensors


def solve_bits(member: Member, entry: Bits, dtype: torch.dtype) -> Outcome:
    """Return the rounded weight of a projection.

    Args:
        member: The weight with its weightings.
        entry: The entry, with the grid and how it is rounded to.
        dtype: Dtype of the scales.

    Raises:
        NumericalError: The weight contains NaN or infinity.
    """
    W = member.W.T.float()
    if not torch.isfinite(W).all():
        raise NumericalError("a weight matrix contains NaN or infinity: the model is damaged.")
    rounded = rounded_as(entry, member, W, dtype)
    G, H = member.G.double(), member.H
    loss, total = loss_of_error((rounded.matrix() - W).double(), G, H), loss_of_error(W.double(), G, H)
    tensors = stored_tensors(f"{entry.owner}.weight", rounded, dtype)
    return Outcome(entry, tensors, loss, loss / total if total > 0 else 0.0)


def rounded_as(entry: Bits, member: Member, W: Tensor, dtype: torch.dtype) -> Rounded:
    """Return a weight rounded as its entry says.

    Args:
        entry: The entry.
        member: The weight with its weightings.
        W: The weight, shape ``[d_out, d_in]``, fp32.
        dtype: Dtype of the model.
    """
    grid = entry.weight_grid
    if entry.rounding == "nearest":
        return nearest(W, grid, *scales_of(W, grid, search="range", stored=scale_dtype(dtype)))
    if entry.rounding == "gptq":
        return with_feedback(W, [grid], member.G, search="range", damping=0.01, stored=scale_dtype(dtype))[0]
    return with_feedback(W, [grid], member.G, stored=scale_dtype(dtype))[0]
