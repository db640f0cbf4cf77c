"""One order of the inputs for several bases, in which the first k inputs are good pivots for the basis of rank k."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

_BLOCK = 16
_SLACK = log(1.1)
_TINY = 1e-300


def nested_order(bases: Sequence[Tensor]) -> Tensor:
    """Return the inputs in an order whose first k are pivots of every basis of rank k.

    Inputs are chosen one after the other: the next one maximizes the product of the squared volumes of the chosen rows
    over all bases of higher rank (QR with column pivoting of B^T, for all bases together). A block of choices is made
    on few rows, as long as no other row can enlarge the product by a tenth more, and then taken from all rows at once.

    Args:
        bases: Bases with orthonormal columns, shape ``[d_in, k_i]`` each, by rising rank.

    Returns:
        Indices, int64, shape ``[largest rank]``.
    """
    residuals = [basis.clone() for basis in bases]
    free = torch.ones(len(bases[0]), dtype=torch.bool, device=bases[0].device)
    chosen: list[int] = []
    for rank in sorted({basis.shape[1] for basis in bases}):
        active = [i for i, basis in enumerate(bases) if basis.shape[1] >= rank]
        while len(chosen) < rank:
            scores = _scores([residuals[i] for i in active]).masked_fill(~free, -torch.inf)
            few = scores.topk(min(4 * _BLOCK, int(free.sum()))).indices
            # What a row adds to a volume only falls, so that scores of before the block are upper bounds.
            others = scores.index_fill(0, few, -torch.inf).max().item() - _SLACK
            rows = [residuals[i][few] for i in active]
            picked, directions = _block(rows, min(_BLOCK, rank - len(chosen)), others)
            chosen += few[picked].tolist()
            free[few[picked]] = False
            for i, U in zip(active, directions, strict=True):
                residuals[i] -= (residuals[i] @ U) @ U.T
    return torch.tensor(chosen, device=free.device)


def _scores(residuals: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the product, over the bases, of the squared norm of every row; shape ``[rows]``."""
    return torch.stack([R.square().sum(1).clamp_min(_TINY).log() for R in residuals]).sum(0)


def _block(rows: Sequence[Tensor], most: int, others: float) -> tuple[list[int], list[Tensor]]:
    """Choose up to ``most`` rows, as long as their scores are at least ``others``.

    Returns:
        Positions of the chosen rows, at least one, and for every basis the orthonormal directions that they span, shape
        ``[k, chosen]``.
    """
    rows = [R.clone() for R in rows]
    free = torch.ones(len(rows[0]), dtype=torch.bool, device=rows[0].device)
    picked: list[int] = []
    directions: list[list[Tensor]] = [[] for _ in rows]
    while len(picked) < most:
        scores = _scores(rows).masked_fill(~free, -torch.inf)
        best = int(scores.argmax())
        if picked and scores[best].item() < others:
            break
        picked.append(best)
        free[best] = False
        for own, R in zip(directions, rows, strict=True):
            u = R[best] / R[best].norm().clamp_min(_TINY)
            own.append(u)
            R -= torch.outer(R @ u, u)
    return picked, [torch.stack(own, dim=1) for own in directions]
