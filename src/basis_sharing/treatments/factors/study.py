"""The sharing study: for every pair of layers, the loss of one shared basis relative to that of two separate ones.

The paper shows such comparisons for one model and one role; this module computes them for every role, every pair and
several ratios. Both sides of a comparison store the same number of parameters (in pivoted form), and losses are in nats
per token.
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import torch

from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import ModelError, NumericalError, PlanError
from basis_sharing.linalg.group_losses import losses
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.results.study import Matrix, RoleAtRatio, RoleStudy, SharingStudy
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.treatments.factors.candidates import Group, group_of
from basis_sharing.treatments.factors.options import all_ranks
from basis_sharing.treatments.factors.separate import separate_losses
from basis_sharing.weightings.base import Weighting

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_NOTHING = 1e-12


def study_sharing(
    model: Any,
    decoder: Decoder,
    weighting: Weighting,
    *,
    ratios: Sequence[float] = RATIOS,
    distance: int | None = None,
    progress: ProgressCallback = silent,
) -> SharingStudy:
    """Return the comparison of shared and separate bases for every role and every pair of blocks.

    At each ratio the shared basis has the highest rank that fits, and the separate bases have the same number of
    parameters, divided between them optimally on the lower convex hulls of their curves (as a planner's price per
    parameter would divide them). The comparison favours separate bases for two reasons: the hulls are below the curves
    (by less than 1 % as a rule, but by 17 % for a square matrix with a flat synthetic spectrum at ratio 0.2), and the
    shared basis of layers with different inputs is not optimal (:func:`~basis_sharing.linalg.truncation.truncate`).

    Args:
        model: The dense model.
        decoder: Its structure.
        weighting: Weighting of errors, with losses in nats per token.
        ratios: Fractions between 0 and 1.
        distance: The maximum distance between the blocks of a pair; None: all pairs.
        progress: Receives one event per pair.

    Raises:
        PlanError: A ratio is out of range, or no ratio is given.
        ModelError: No role has the same shape in two blocks.
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise PlanError("a sharing study needs ratios above 0 and below 1.")
    ratios = tuple(sorted(set(ratios)))
    series = _series(decoder)
    if not series:
        raise ModelError("no projection has the same shape in two blocks, so there is no pair to share a basis.")
    names = _names(series, decoder)
    chosen = [_pairs(projections, distance) for projections in series]
    done, total = 0, sum(map(len, chosen))
    roles = []
    for name, projections, pairs in zip(names, series, chosen, strict=True):
        private = [_group(model, weighting, (projection,)) for projection in projections]
        shape = (len(ratios), len(projections), len(projections))
        quotients, shared_losses = np.full(shape, np.nan), np.full(shape, np.nan)
        for i, j in pairs:
            shared = _group(model, weighting, (projections[i], projections[j]))
            by_ratio = _compare(shared, (private[i], private[j]), ratios)
            for matrices, values in zip((quotients, shared_losses), by_ratio, strict=True):
                matrices[:, i, j] = matrices[:, j, i] = values
            done += 1
            progress(Progress("comparing pairs", done, total, "pairs"))
        roles.append(_role(name, projections, decoder, ratios, quotients, shared_losses))
    return SharingStudy(ratios=ratios, roles=tuple(roles))


def _pairs(projections: Sequence[Projection], distance: int | None) -> list[tuple[int, int]]:
    """Return the positions of the pairs to compare."""
    pairs = combinations(range(len(projections)), 2)
    return [(i, j) for i, j in pairs if distance is None or projections[j].block - projections[i].block <= distance]


def _series(decoder: Decoder) -> list[list[Projection]]:
    """Return the projections with equal paths in their blocks and equal shapes, in lists of at least two."""
    by_slot: dict[tuple[str, int, int], list[Projection]] = {}
    for p in decoder.projections:
        by_slot.setdefault((decoder.path_in_block(p), p.d_in, p.d_out), []).append(p)
    return [projections for projections in by_slot.values() if len(projections) > 1]


def _names(series: Sequence[Sequence[Projection]], decoder: Decoder) -> list[str]:
    """Return the name of each series: its role, with path or shape where several series have this role."""
    roles = Counter(projections[0].role for projections in series)
    slots = Counter(decoder.path_in_block(projections[0]) for projections in series)
    names = []
    for first in (projections[0] for projections in series):
        slot, name = decoder.path_in_block(first), first.role
        if roles[first.role] > slots[slot]:
            name += f" {slot}"
        if slots[slot] > 1:
            name += f" {first.d_in} x {first.d_out}"
        names.append(name)
    return names


def _group(model: Any, weighting: Weighting, members: tuple[Projection, ...]) -> Group:
    curve = losses(weighting.problem(model, members))
    if not torch.isfinite(curve).all():
        raise NumericalError(f"the loss of {members[0].name} is not finite: calibrate in float32.")
    return group_of(members, curve.numpy(), Parameters(), all_ranks(members, "pivoted"))


def _compare(shared: Group, private: Sequence[Group], ratios: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return quotients and shared losses by ratio; NaN where the ratio leaves no room for rank 1."""
    costs, lost, dense = shared.costs, shared.losses[1:], int(shared.dense)
    # Use the ratio as a decimal number, so that binary rounding does not change a rank.
    budgets = [float((1 - Fraction(str(ratio))) * dense) for ratio in ratios]
    positions = np.searchsorted(costs, budgets, side="right") - 1
    separate = separate_losses(private, costs[positions.clip(0)])
    # Losses below this floor are rounding errors, whose quotient would be meaningless.
    floor = max(_NOTHING * sum(float(piece.losses[0]) for piece in private), np.finfo(float).tiny)
    quotients, shared_losses = [], []
    for position, alone in zip(positions, separate, strict=True):
        possible = position >= 0 and np.isfinite(alone)
        quotients.append(max(float(lost[position]), floor) / max(float(alone), floor) if possible else np.nan)
        shared_losses.append(float(lost[position]) if position >= 0 else np.nan)
    return quotients, shared_losses


def _role(
    name: str,
    projections: Sequence[Projection],
    decoder: Decoder,
    ratios: tuple[float, ...],
    quotients: Any,
    shared_losses: Any,
) -> RoleStudy:
    layers = tuple(p.block for p in projections)
    summaries = tuple(_summary(ratio, layers, matrix) for ratio, matrix in zip(ratios, quotients, strict=True))
    return RoleStudy(
        name=name,
        role=projections[0].role,
        slot=decoder.path_in_block(projections[0]),
        d_in=projections[0].d_in,
        d_out=projections[0].d_out,
        layers=layers,
        quotients=tuple(_matrix(matrix) for matrix in quotients),
        shared_losses=tuple(_matrix(matrix) for matrix in shared_losses),
        summaries=summaries,
        lowest_paying_ratio=next((s.ratio for s in summaries if s.pairs_paying), None),
    )


def _summary(ratio: float, layers: Sequence[int], quotients: Any) -> RoleAtRatio:
    pairs = {
        (layers[i], layers[j]): float(quotients[i, j])
        for i, j in combinations(range(len(layers)), 2)
        if np.isfinite(quotients[i, j])
    }
    neighbours = [quotient for (a, b), quotient in pairs.items() if b - a == 1]
    best = min(pairs, key=lambda pair: pairs[pair]) if pairs else None
    return RoleAtRatio(
        ratio=ratio,
        pairs=len(pairs),
        pairs_paying=sum(quotient < 1 for quotient in pairs.values()),
        neighbours=len(neighbours),
        neighbours_paying=sum(quotient < 1 for quotient in neighbours),
        best_pair=best,
        best_gain=None if best is None else 1 - pairs[best],
        best_neighbour=min(neighbours, default=None),
        median_neighbour=median(neighbours) if neighbours else None,
    )


def _matrix(values: Any) -> Matrix:
    return tuple(tuple(float(v) if np.isfinite(v) else None for v in row) for row in values)
