"""Rounding of a matrix to few bits, with scales that are searched and errors that later numbers make up for.

Matrices are ``[d_out, d_in]`` as in ``nn.Linear``; every output is rounded on its own. Rounding one input after the
other, the error at each is made up for at those that are still to be rounded, such that tr(dW G dW^T) is least
(GPTQ, arXiv 2210.17323, algorithm 1, which solves for one output at a time; Optimal Brain Surgeon before).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from basis_sharing.linalg.whitening import positive_cholesky
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.runtime.rounded_basis_sharing import on_grid

_SHRINKS = tuple(1 - step / 40 for step in range(17))  # 1 to 0.6 of the range
_BLOCK = 64  # inputs whose errors are made up for at those after them by one product
Search = Literal["range", "error"]


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes:
        codes: uint8, shape ``[d_out, d_in]``.
        scale: Shape ``[d_out, groups]``.
        zero: Zero points, uint8, shape ``[d_out, groups]``.
        grid: The grid.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    grid: Grid

    def matrix(self) -> Tensor:
        """Return the matrix in the dtype of the scales, shape ``[d_out, d_in]``."""
        return on_grid(self.codes.to(self.scale), self.scale, self.zero.to(self.scale)[:, :, None], self.grid.group)


def scales_of(
    W: Tensor, grid: Grid, weights: Tensor | None = None, search: Search = "error", stored: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point of every group, both of shape ``[d_out, groups]``.

    Args:
        W: The matrix, shape ``[d_out, d_in]``.
        grid: The grid.
        weights: Weight of the error at every input, shape ``[d_in]``; None: all count the same.
        search: ``"range"``: the range of the group; ``"error"``: the part of it, from all to 0.6, with the least error.
        stored: Dtype in which scales will be stored; they are rounded to it.
    """
    grouped = _in_groups(W, grid.group)
    weight = torch.ones_like(grouped[:1]) if weights is None else _in_groups(weights.to(W)[None], grid.group)
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    top = 2**grid.bits - 1
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in _SHRINKS if search == "error" else (1.0,):
        if grid.symmetric:
            middle = 2 ** (grid.bits - 1)
            scale = shrink * torch.maximum(-low / middle, high / (middle - 1))
            zero = torch.full_like(scale, middle)
        else:
            scale = shrink * (high - low) / top
            zero = (-shrink * low / scale.clamp_min(torch.finfo(W.dtype).tiny)).round_().clamp_(0, top)
        if stored is not None:
            scale = scale.to(stored).to(W.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if search == "range":
            return scale, zero
        codes = (grouped / scale[:, :, None]).add_(zero[:, :, None]).round_().clamp_(0, top)
        error = codes.sub_(zero[:, :, None]).mul_(scale[:, :, None]).sub_(grouped).square_().mul_(weight).sum(-1)
        if best is None:
            best = (error, scale, zero)
            continue
        better = error < best[0]
        best = (
            torch.where(better, error, best[0]),
            torch.where(better, scale, best[1]),
            torch.where(better, zero, best[2]),
        )
    assert best is not None
    return best[1], best[2]


def nearest(W: Tensor, grid: Grid, scale: Tensor, zero: Tensor) -> Rounded:
    """Return a matrix rounded to the nearest numbers of its grid."""
    codes = (_in_groups(W, grid.group) / scale[:, :, None]).add_(zero[:, :, None]).round_().clamp_(0, 2**grid.bits - 1)
    return Rounded(codes.flatten(1)[:, : W.shape[1]].to(torch.uint8), scale, zero.to(torch.uint8), grid)


def _in_groups(W: Tensor, group: int) -> Tensor:
    """Return the inputs of a matrix in groups, filled up with zeros, shape ``[d_out, groups, group]``."""
    missing = -W.shape[1] % group
    return (torch.nn.functional.pad(W, (0, missing)) if missing else W).view(len(W), -1, group)


def with_feedback(
    W: Tensor,
    grids: Sequence[Grid],
    G: Tensor,
    *,
    search: Search = "error",
    damping: float = 0.0,
    stored: torch.dtype | None = None,
) -> list[Rounded]:
    """Return a matrix rounded to several grids, errors made up for in the metric G.

    Inputs are rounded as they come, and the scales of a group are found when it is reached, from what errors before it
    have left to round. With ``search="range"`` and ``damping=0.01`` this is GPTQ as its authors run it.

    Args:
        W: The matrix, shape ``[d_out, d_in]``.
        grids: The grids; those with groups of one size are rounded to at once.
        G: Second moment of the inputs, shape ``[d_in, d_in]``.
        search: As for :func:`scales_of`.
        damping: Added to the diagonal of G, in multiples of its mean.
        stored: Dtype in which scales will be stored.
    """
    U = feedback_of(G, damping).to(W.dtype)
    found: dict[Grid, Rounded] = {}
    for size in dict.fromkeys(grid.group for grid in grids):
        same = [grid for grid in grids if grid.group == size]
        found |= zip(same, _rounded_together(W, same, U, search, stored), strict=True)
    return [found[grid] for grid in grids]


def _rounded_together(
    W: Tensor, grids: Sequence[Grid], U: Tensor, search: Search, stored: torch.dtype | None
) -> list[Rounded]:
    """Return a matrix rounded to several grids with groups of one size, for the U of :func:`feedback_of`."""
    (d_out, d_in), size = W.shape, grids[0].group
    importance = U.diagonal().pow(-2)
    rest = W.T.repeat(1, len(grids)).contiguous()
    tops = torch.cat([torch.full((d_out,), float(2**grid.bits - 1)).to(W) for grid in grids])
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=W.device)
    scales, zeros = [], []
    for start in range(0, d_in, size):
        group = slice(start, min(start + size, d_in))
        parts = rest[group].T.contiguous().split(d_out)
        found = [
            scales_of(part, replace(grid, group=len(part.T)), importance[group], search, stored)
            for part, grid in zip(parts, grids, strict=True)
        ]
        scale, zero = (torch.cat(one)[:, 0] for one in zip(*found, strict=True))
        for first in range(start, group.stop, _BLOCK):
            block = slice(first, min(first + _BLOCK, group.stop))
            codes[block] = _round_block(rest, block, scale, zero, tops, U)
        scales.append(scale)
        zeros.append(zero.to(torch.uint8))
    scale, zero = torch.stack(scales, 1), torch.stack(zeros, 1)
    whole = (codes.T.contiguous().split(d_out), scale.split(d_out), zero.split(d_out), grids)
    return [Rounded(*of_grid) for of_grid in zip(*whole, strict=True)]


def _round_block(rest: Tensor, block: slice, scale: Tensor, zero: Tensor, tops: Tensor, U: Tensor) -> Tensor:
    """Round some inputs of all outputs, and change the inputs after them to make up for the errors.

    Args:
        rest: What is to be rounded, changed in place, shape ``[d_in, d_out]``.
        block: The inputs.
        scale: Scale of every output, shape ``[d_out]``.
        zero: Zero point of every output.
        tops: Largest code of every output.
        U: From :func:`feedback_of`.

    Returns:
        The codes, shape ``[inputs, d_out]``.
    """
    codes, errors = torch.empty_like(rest[block]), torch.empty_like(rest[block])
    for place in range(block.start, block.stop):
        row, at = rest[place], place - block.start
        torch.minimum((row / scale).add_(zero).round_().clamp_min_(0), tops, out=codes[at])
        error = row.sub((codes[at] - zero).mul_(scale)).div_(U[place, place])
        errors[at] = error
        if place + 1 < block.stop:
            rest[place + 1 : block.stop].addr_(U[place, place + 1 : block.stop], error, alpha=-1)
    if block.stop < len(rest):
        rest[block.stop :].addmm_(U[block, block.stop :].T, errors, alpha=-1)
    return codes


def feedback_of(G: Tensor, damping: float = 0.0) -> Tensor:
    """Return U upper triangular with U^T U = G^-1, fp64.

    Row i says how the error at input i is made up for at those after it (GPTQ, section 3.3, step 3).

    Args:
        G: Second moment of the inputs, shape ``[d_in, d_in]``.
        damping: Added to its diagonal, in multiples of the mean.
    """
    damped = G.double().clone()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(positive_cholesky(damped)[0])
    return positive_cholesky(inverse)[0].T


def loss_of_error(error: Tensor, G: Tensor, H: Tensor | None) -> float:
    """Return tr(E G E^T H) for an error E of shape ``[d_out, d_in]``; H None: the identity."""
    weighted = error @ G.to(error)
    return float(((weighted if H is None else H.to(error) @ weighted) * error).sum())
