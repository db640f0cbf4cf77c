"""Rounded matrices: the grids that are offered for a number of inputs, and the tensors of a matrix on disk."""

import torch
from torch import Tensor

from basis_sharing.linalg.rounding import Rounded
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.format_basis_sharing import Grid, grid_tensors
from basis_sharing.runtime.rounded_basis_sharing import pack

SMALLEST_GROUP = 16
_GROUP = 64
_ONE_SCALE = 8  # bits


def grids_for(planning: Planning, d_in: int) -> list[Grid]:
    """Return the grids that settings offer for a matrix with so many inputs, most bits first."""
    return [grid_for(planning, bits, d_in) for bits in sorted(planning.offered_widths, reverse=True)]


def grid_for(planning: Planning, bits: int, d_in: int) -> Grid:
    """Return the grid of so many bits for a matrix with so many inputs.

    Unless a group is asked for, it is symmetric and has one scale per output in 8 bits: the products of PyTorch read
    that, and there it costs little.
    """
    if planning.scale_group is None and bits == _ONE_SCALE:
        return Grid(bits, d_in, symmetric=True)
    return Grid(bits, whole_group(planning.scale_group or _GROUP, d_in), not planning.zero_points)


def factor_grids_for(planning: Planning, d_in: int) -> list[Grid]:
    """Return the grids for factors of a matrix with so many inputs; the last group of a factor may be smaller."""
    return [
        grid if grid.group == d_in else Grid(grid.bits, planning.scale_group or _GROUP, grid.symmetric)
        for grid in grids_for(planning, d_in)
    ]


def whole_group(group: int, d_in: int) -> int:
    """Return the largest group of at most ``group`` inputs, halved until it divides ``d_in``; all of them if none does.

    Groups that divide the inputs are what the kernels of PyTorch and of serving engines read.
    """
    while group >= SMALLEST_GROUP:
        if d_in % group == 0:
            return group
        group //= 2
    return d_in


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype whose numbers scales are: bf16 for wider models, whose products with few bits read it."""
    return torch.bfloat16 if dtype.itemsize > torch.bfloat16.itemsize else dtype


def stored_tensors(name: str, rounded: Rounded, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a rounded matrix on disk.

    Args:
        name: Name of the whole matrix, ``<path>.weight``.
        rounded: The matrix.
        dtype: Dtype of the scales.
    """
    grid = rounded.grid
    packed, scale = pack(rounded.codes, grid).cpu(), rounded.scale.to("cpu", dtype)
    zero = () if grid.symmetric else (pack(rounded.zero.T.contiguous(), grid).T.contiguous().cpu(),)
    return dict(zip(grid_tensors(name, grid), (packed, scale, *zero), strict=True))
