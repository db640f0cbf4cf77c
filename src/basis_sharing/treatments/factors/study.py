"""The sharing study: for every pair of layers, what one basis for both loses against the best two private ones.

The paper's figures show it for one model and one role; this is every role, every pair and several ratios. Both sides of
a comparison store the same number of parameters (pivoted, DESIGN 3.3), and losses count in nats per token (DESIGN 3.2).
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from basis_sharing.errors import ModelError, NumericalError, PlanError
from basis_sharing.linalg.truncation import losses
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.treatments.factors.candidates import Candidate, separate_losses, stored_and_lost
from basis_sharing.weightings.weighting import Weigher

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_NOTHING = 1e-12

Matrix = tuple[tuple[float | None, ...], ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RoleAtRatio(_Frozen):
    """What sharing does to one role at one ratio. A pair pays if its quotient is below 1.

    Attributes:
        ratio: Fraction of the parameters of a pair that is removed.
        pairs: Pairs that can be compared.
        pairs_paying: How many of them pay.
        neighbours: Pairs of adjacent blocks among them.
        neighbours_paying: How many of these pay.
        best_pair: Blocks of the pair with the lowest quotient; None where no pair can be compared.
        best_gain: 1 - that quotient, the fraction of the private loss that sharing avoids; negative: it adds to it.
        best_neighbour: Lowest quotient of adjacent blocks; None where there are none.
        median_neighbour: Median quotient of adjacent blocks; None where there are none.
    """

    ratio: float
    pairs: int
    pairs_paying: int
    neighbours: int
    neighbours_paying: int
    best_pair: tuple[int, int] | None
    best_gain: float | None
    best_neighbour: float | None
    median_neighbour: float | None


class RoleStudy(_Frozen):
    """The study of projections with one place in their blocks and one shape.

    Attributes:
        name: The role, with place or shape added where several are studied.
        role: What the projections are for.
        slot: Module path inside a block.
        d_in: Number of input features.
        d_out: Number of output features.
        layers: Blocks that have the projection, ascending; rows and columns of the matrices stand for them.
        quotients: Per ratio, the loss of one shared basis divided by that of two private ones, ``[layers][layers]``,
            symmetric; None on the diagonal, for pairs that are too far apart, and where the ratio leaves fewer
            parameters than rank 1 needs.
        shared_losses: Per ratio, the expected loss rise of the shared basis, in nats per token, arranged alike.
        summaries: One per ratio.
        lowest_paying_ratio: The lowest studied ratio at which any pair pays; None: none pays at any.
    """

    name: str
    role: str
    slot: str
    d_in: int
    d_out: int
    layers: tuple[int, ...]
    quotients: tuple[Matrix, ...]
    shared_losses: tuple[Matrix, ...]
    summaries: tuple[RoleAtRatio, ...]
    lowest_paying_ratio: float | None


class SharingStudy(_Frozen):
    """The study of a model.

    Attributes:
        ratios: Fractions of the parameters of a pair that are removed, ascending.
        roles: One study per role (and shape), in the order of the blocks.
    """

    ratios: tuple[float, ...]
    roles: tuple[RoleStudy, ...]

    def position(self, ratio: float) -> int:
        """Return the place of a ratio in :attr:`ratios`.

        Raises:
            PlanError: It was not studied.
        """
        if ratio not in self.ratios:
            raise PlanError(f"ratio {ratio:g} was not studied: choose from {', '.join(f'{r:g}' for r in self.ratios)}.")
        return self.ratios.index(ratio)


def study_sharing(
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    *,
    ratios: Sequence[float] = RATIOS,
    distance: int | None = None,
    progress: ProgressCallback = silent,
) -> SharingStudy:
    """Compare sharing with not sharing, for every role and every pair of blocks.

    At each ratio the shared basis has the highest rank that fits, and the private ones may store exactly what it does,
    divided between them in the best way: on the lower convex hulls of their curves, where a planner's price per
    parameter puts them. Both that and the shared basis of layers whose inputs differ, for which no closed form gives
    the very best (:func:`~basis_sharing.linalg.truncation.truncate`), favour the private side: the hulls by less than
    1 % as a rule, but by 17 % for a square matrix with a flat synthetic spectrum at ratio 0.2.

    Args:
        model: The dense model.
        decoder: Its structure.
        weigher: Poses the problem of each pair; its losses are in nats per token.
        ratios: Fractions between 0 and 1.
        distance: Compare only blocks that are at most so far apart; None: all.
        progress: Receives one event per pair.

    Raises:
        PlanError: A ratio is out of range, or there is none.
        ModelError: No role has the same shape in two blocks.
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise PlanError("a sharing study needs ratios above 0 and below 1.")
    ratios = tuple(sorted(set(ratios)))
    lanes = _lanes(decoder)
    if not lanes:
        raise ModelError("no projection has the same shape in two blocks, so there is no pair to share a basis.")
    names = _names(lanes, decoder)
    chosen = [_pairs(lane, distance) for lane in lanes]
    done, total = 0, sum(map(len, chosen))
    roles = []
    for name, lane, pairs in zip(names, lanes, chosen, strict=True):
        private = [_candidate(model, weigher, (projection,)) for projection in lane]
        shape = (len(ratios), len(lane), len(lane))
        quotients, shared_losses = np.full(shape, np.nan), np.full(shape, np.nan)
        for i, j in pairs:
            shared = _candidate(model, weigher, (lane[i], lane[j]))
            found = _compare(shared, (private[i], private[j]), ratios)
            for matrices, values in zip((quotients, shared_losses), found, strict=True):
                matrices[:, i, j] = matrices[:, j, i] = values
            done += 1
            progress(Progress("comparing pairs", done, total, "pairs"))
        roles.append(_role(name, lane, decoder, ratios, quotients, shared_losses))
    return SharingStudy(ratios=ratios, roles=tuple(roles))


def _pairs(lane: Sequence[Projection], distance: int | None) -> list[tuple[int, int]]:
    """Return the positions of the pairs to compare."""
    pairs = combinations(range(len(lane)), 2)
    return [(i, j) for i, j in pairs if distance is None or lane[j].block - lane[i].block <= distance]


def _lanes(decoder: Decoder) -> list[list[Projection]]:
    """Return the projections with one place in their blocks and one shape, where at least two have it."""
    found: dict[tuple[str, int, int], list[Projection]] = {}
    for projection in decoder.projections:
        found.setdefault((_slot(projection, decoder), projection.d_in, projection.d_out), []).append(projection)
    return [lane for lane in found.values() if len(lane) > 1]


def _slot(projection: Projection, decoder: Decoder) -> str:
    return projection.name.removeprefix(f"{decoder.blocks[projection.block]}.")


def _names(lanes: Sequence[Sequence[Projection]], decoder: Decoder) -> list[str]:
    """Return what to call each lane: its role, and what tells it from others of that role."""
    roles = Counter(lane[0].role for lane in lanes)
    slots = Counter(_slot(lane[0], decoder) for lane in lanes)
    names = []
    for first in (lane[0] for lane in lanes):
        slot, name = _slot(first, decoder), first.role
        if roles[first.role] > slots[slot]:
            name += f" {slot}"
        if slots[slot] > 1:
            name += f" {first.d_in} x {first.d_out}"
        names.append(name)
    return names


def _candidate(model: Any, weigher: Weigher, members: tuple[Projection, ...]) -> Candidate:
    curve = losses(weigher.problem(model, members))
    if not torch.isfinite(curve).all():
        raise NumericalError(f"the loss of {members[0].name} is not finite: calibrate in float32.")
    return Candidate(members, curve.numpy())


def _compare(
    shared: Candidate, private: Sequence[Candidate], ratios: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return quotients and shared losses by ratio; NaN where the ratio leaves no room for rank 1."""
    costs, lost = stored_and_lost(shared)
    dense = shared.members[0].d_in * sum(p.d_out for p in shared.members)
    # As the decimal number that was asked for: binary rounding must not cost a rank.
    budgets = [float((1 - Fraction(str(ratio))) * dense) for ratio in ratios]
    positions = np.searchsorted(costs, budgets, side="right") - 1
    separate = separate_losses(private, costs[positions.clip(0)])
    # Below it both sides lose nothing but rounding errors, whose quotient would say anything.
    floor = max(_NOTHING * sum(float(piece.losses[0]) for piece in private), np.finfo(float).tiny)
    quotients, shared_losses = [], []
    for position, alone in zip(positions, separate, strict=True):
        possible = position >= 0 and np.isfinite(alone)
        quotients.append(max(float(lost[position]), floor) / max(float(alone), floor) if possible else np.nan)
        shared_losses.append(float(lost[position]) if position >= 0 else np.nan)
    return quotients, shared_losses


def _role(
    name: str,
    lane: Sequence[Projection],
    decoder: Decoder,
    ratios: tuple[float, ...],
    quotients: Any,
    shared_losses: Any,
) -> RoleStudy:
    layers = tuple(p.block for p in lane)
    summaries = tuple(_summary(ratio, layers, matrix) for ratio, matrix in zip(ratios, quotients, strict=True))
    return RoleStudy(
        name=name,
        role=lane[0].role,
        slot=_slot(lane[0], decoder),
        d_in=lane[0].d_in,
        d_out=lane[0].d_out,
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
