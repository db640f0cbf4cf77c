"""Anchored refit: new coefficients in closed form, from what a projection reads in both flows.

See docs/how-it-works.md#the-refit.

In the compressed model a projection reads x' where the original reads x. With bases fixed, the coefficients that bring
its output nearest to what the original's weight makes of x_a = a x + (1 - a) x', a point between the two flows, are

    C = (B^T G' B)^-1 B^T (a K + (1 - a) G') W,    G' = E[w x'^T x'],  K = E[w x'^T x],

with w = 1 / |x|^2, so that tokens with huge activations (the first of a text above all) count as much as the others.
The anchor a, and how far to go from the planned coefficients towards C, are chosen by the error of the whole block on
windows that are kept apart; where no choice makes that smaller, the planned coefficients stay.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.linalg.whitening import positive_cholesky
from basis_sharing.run.processes import Processes

CHOICES = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.5))
_RIDGE = 1e-3


@dataclass(frozen=True)
class FlowMoments:
    """What a projection reads in both flows.

    Attributes:
        own: G', shape ``[d_in, d_in]``, fp64.
        cross: K, shape ``[d_in, d_in]``, fp64.
    """

    own: Tensor
    cross: Tensor


def flow_moments(pairs: Iterable[tuple[Tensor, Tensor]], d_in: int, processes: Processes | None = None) -> FlowMoments:
    """Add up the moments of what is read in the compressed and in the original flow.

    Args:
        pairs: What is read, ``[tokens, d_in]`` in either flow.
        d_in: Its width.
        processes: The processes that have pairs of their own.
    """
    totals: list[Tensor] = []
    for compressed, original in pairs:
        ours, theirs = compressed.float(), original.float()
        left = (ours / theirs.square().sum(-1, keepdim=True).clamp_min(1e-12)).T
        products = left @ ours, left @ theirs
        totals = [total.add_(new) for total, new in zip(totals, products, strict=True)] if totals else list(products)
    own, cross = (total.double().cpu() for total in totals or torch.zeros(2, d_in, d_in))
    for total in (own, cross):
        (processes or Processes()).add_up(total)
    return FlowMoments(own, cross)


def anchored_coefficients(B: Tensor, moments: FlowMoments, W: Tensor, C: Tensor, anchor: float) -> Tensor:
    """Return the coefficients for an anchor.

    A small ridge pulls towards the planned coefficients where the data says little.

    Args:
        B: Basis, all rows, shape ``[d_in, k]``, fp64.
        moments: What is read in both flows.
        W: Weight of the original, shape ``[d_in, d_out]``, fp64.
        C: Planned coefficients, shape ``[k, d_out]``, fp64.
        anchor: 1: the output in the original flow is the target; 0: what the original's weight makes of x'.
    """
    A = B.T @ moments.own @ B
    A.diagonal().add_(_RIDGE * A.diagonal().mean())
    target = B.T @ (anchor * (moments.cross @ W) + (1 - anchor) * (moments.own @ W))
    factor, _ = positive_cholesky(A)
    pull = _RIDGE / (1 + _RIDGE) * A.diagonal().mean() * C
    return torch.cholesky_solve(target + pull, factor)


def best_choice(
    planned: Sequence[Tensor],
    refitted: Callable[[float], Sequence[Tensor]],
    install: Callable[[Sequence[Tensor]], None],
    error: Callable[[], float],
) -> float:
    """Leave the coefficients in place that make the error smallest.

    Args:
        planned: The coefficients that are in place.
        refitted: Returns those for an anchor.
        install: Puts coefficients in place.
        error: Returns the error of the block with those that are in place.

    Returns:
        The error with them.
    """
    best = error()
    chosen = planned
    solved: dict[float, Sequence[Tensor]] = {}
    for anchor, step in CHOICES:
        if anchor not in solved:
            solved[anchor] = refitted(anchor)
        candidate = [old + step * (new - old) for old, new in zip(planned, solved[anchor], strict=True)]
        install(candidate)
        found = error()
        if found < best:
            best, chosen = found, candidate
    install(chosen)
    return best
