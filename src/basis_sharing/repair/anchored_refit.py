"""Anchored refit: new coefficients in closed form, from the inputs of a projection in both flows.

See docs/how-it-works.md#the-refit.

In the compressed flow the input of a projection is x' where it is x in the dense flow. With the bases fixed, the
coefficients whose output for x' is closest to the output of the original weight for x_a = a x + (1 - a) x', a point
between the two flows, are

    C = (B^T G' B)^-1 B^T (a K + (1 - a) G') W,    G' = E[w x'^T x'],  K = E[w x'^T x],

with w = 1 / |x|^2, so that tokens with huge activations (such as the first token of a text) count as much as the
others. The anchor a and the step from the planned coefficients towards C are chosen by the error of the whole block on
held-out windows; if no choice reduces this error, the planned coefficients are kept.
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
    """Second moments of the inputs of a projection in both flows.

    Attributes:
        own: G', shape ``[d_in, d_in]``, fp64.
        cross: K, shape ``[d_in, d_in]``, fp64.
    """

    own: Tensor
    cross: Tensor


def flow_moments(pairs: Iterable[tuple[Tensor, Tensor]], d_in: int, processes: Processes | None = None) -> FlowMoments:
    """Return the second moments of inputs in the compressed and in the dense flow, summed over all processes.

    Args:
        pairs: Inputs in the compressed and in the dense flow, each of shape ``[tokens, d_in]``.
        d_in: Number of input features.
        processes: The processes that share the work, each with its own pairs; None: only this one.
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
    """Return the coefficients for an anchor, shape ``[k, d_out]``.

    A small ridge pulls towards the planned coefficients in directions that the data hardly determines.

    Args:
        B: Basis, all rows, shape ``[d_in, k]``, fp64.
        moments: Second moments of the inputs in both flows.
        W: Weight of the original, shape ``[d_in, d_out]``, fp64.
        C: Planned coefficients, shape ``[k, d_out]``, fp64.
        anchor: 1: the target is the output in the dense flow; 0: the output of the original weight for x'.
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
    """Install the coefficients with the smallest error: the planned ones, or those of one of :data:`CHOICES`.

    Args:
        planned: The coefficients that are installed now.
        refitted: Returns the refitted coefficients for an anchor.
        install: Puts coefficients into the block.
        error: Returns the error of the block with the installed coefficients.

    Returns:
        The smallest error.
    """
    best = error()
    chosen = planned
    solved: dict[float, Sequence[Tensor]] = {}
    for anchor, step in CHOICES:
        if anchor not in solved:
            solved[anchor] = refitted(anchor)
        candidate = [old + step * (new - old) for old, new in zip(planned, solved[anchor], strict=True)]
        install(candidate)
        candidate_error = error()
        if candidate_error < best:
            best, chosen = candidate_error, candidate
    install(chosen)
    return best
