"""The ranks that the planner may choose for the experts of every block, each with its loss."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from basis_sharing.linalg.group_losses import GroupLosses
from basis_sharing.models.family import Experts
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.expert_entries_basis_sharing import ExpertFactors
from basis_sharing.treatments.base import Candidate, CurveKey, Floats, Search
from basis_sharing.treatments.expert_factors.problem import matrices
from basis_sharing.treatments.measuring import measure_missing

_KEPT = np.linspace(0.975, 0.05, 38)  # of the parameters of a block's experts
_STEPS = 60  # of the bisection of a price
_ROUNDED_FROM = 64  # features, from which ranks are multiples of 8


def factor_candidates(search: Search) -> list[Candidate]:
    """Return the experts of every block with ranks for all their matrices, after measuring those not known.

    Every option has the ranks that lose the least for as many parameters.
    """
    able = [experts for experts in search.decoder.experts if experts.sizes]
    found = GroupLosses(search.weighting.remembered_bytes, products=torch.float32)
    missing = [(e, name) for e in able for name in e.sizes if _key(e, name) not in search.curves]

    def measured(item: tuple[Experts, str]) -> dict[CurveKey, Floats]:
        experts, name = item
        curves = (found.measured([one]) for one in matrices(search.weighting, search.model, experts, name))
        return {_key(experts, name): torch.stack(list(curves)).numpy().ravel()}

    measure_missing(search, missing, measured, "measuring single experts")
    candidates = []
    for experts in able:
        losses = {name: search.curves[_key(experts, name)].reshape(experts.count, -1) for name in experts.sizes}
        options = _options(experts, losses, search.planning)
        if options:
            entries, totals = zip(*options, strict=True)
            candidates.append(Candidate((experts,), list(entries), np.array(totals)))
    return candidates


def _options(
    experts: Experts, losses: Mapping[str, NDArray[np.float64]], planning: Planning
) -> list[tuple[ExpertFactors, float]]:
    """Return entries with falling parameters, and their losses."""
    tables = {name: _table(experts.sizes[name], curves, planning) for name, curves in losses.items()}
    whole = float(experts.d_in * experts.d_out)
    found: dict[tuple[tuple[int, ...], ...], tuple[ExpertFactors, float]] = {}
    for kept in _KEPT:
        chosen = _at_price(tables, kept * whole)
        if chosen is None:
            break
        ranks = {name: tuple(int(r) for r in tables[name][0][own]) for name, own in chosen.items()}
        if not any(rank for own in ranks.values() for rank in own):
            continue
        loss = sum(float(np.take_along_axis(tables[n][2], own[:, None], 1).sum()) for n, own in chosen.items())
        entry = ExpertFactors(
            members=(experts.name,), count=experts.count, active=experts.active, sizes=experts.sizes, ranks=ranks
        )
        found[tuple(ranks.values())] = (entry, loss)
    return list(found.values())


_Table = tuple[NDArray[np.int64], Floats, Floats]
"""Ranks (0: dense), what each of them costs, and what every expert loses with each, ``[experts, ranks]``."""


def _table(size: tuple[int, int], curves: NDArray[np.float64], planning: Planning) -> _Table:
    a, b = size
    multiple = planning.rank_multiple if planning.rank_multiple != "auto" else 8 if min(size) >= _ROUNDED_FROM else 1
    ranks = np.arange(int(multiple), a * b // (a + b) + 1, int(multiple))
    numbers = np.concatenate([[0], ranks])
    costs = np.concatenate([[a * b], ranks * (a + b)]).astype(float)
    dense = np.zeros((len(curves), 1))
    return numbers, costs, np.concatenate([dense, curves[:, ranks]], axis=1)


def _at_price(tables: Mapping[str, _Table], budget: float) -> dict[str, NDArray[np.int64]] | None:
    """Return the option of every expert that loses the least within a budget; None: the budget is too small."""

    def chosen(price: float) -> tuple[dict[str, NDArray[np.int64]], float]:
        best = {name: (losses + price * costs).argmin(1) for name, (_, costs, losses) in tables.items()}
        return best, sum(float(tables[name][1][own].sum()) for name, own in best.items())

    low, high = -60.0, 10.0  # powers of two
    if chosen(2.0**high)[1] > budget:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if chosen(2.0**middle)[1] > budget else (low, middle)
    return chosen(2.0**high)[0]


def _key(experts: Experts, name: str) -> CurveKey:
    return (f"{ExpertFactors.kind} {name}", experts.name)
