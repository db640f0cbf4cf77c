"""The widths that the planner may choose for the experts of every block, each with its loss."""

from math import lcm

import numpy as np
import torch

from basis_sharing.errors import ModelError
from basis_sharing.linalg.truncation import Member, tails
from basis_sharing.models.family import Experts
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.expert_entries_basis_sharing import NARROWEST, Narrow
from basis_sharing.treatments.base import Candidate, CurveKey, Floats, Search
from basis_sharing.treatments.experts.options import smaller_widths
from basis_sharing.treatments.experts.problem import around
from basis_sharing.treatments.measuring import measure_missing

_MULTIPLES = (64, 32, 16)
_FEWEST_WIDTHS = 24  # multiples of one of them, up to the width of the model


def expert_candidates(search: Search) -> list[Candidate]:
    """Return the experts of every block at all widths, after measuring those whose losses are not known.

    Raises:
        ModelError: Only experts are to become cheaper, and the model has none that can.
    """
    if not search.decoder.experts and search.planning.offered_treatments == (Narrow.kind,):
        raise ModelError("this model has no experts that can be made narrower: leave out --treatments experts.")
    missing = [experts for experts in search.decoder.experts if _key(experts) not in search.curves]

    def measured(experts: Experts) -> dict[CurveKey, Floats]:
        return {_key(experts): losses_of(search, experts)}

    measure_missing(search, missing, measured, "measuring experts")
    candidates = []
    for experts in search.decoder.experts:
        options = smaller_widths(experts, multiple_of(experts, search.planning))
        candidates.append(Candidate((experts,), options, search.curves[_key(experts)][options.widths]))
    return candidates


def multiple_of(experts: Experts, planning: Planning) -> int:
    """Return what widths are multiples of: as the settings say, or as large as leaves at least 24 of them.

    In any case it is a multiple of 8, which products for groups of tokens need.
    """
    if planning.rank_multiple != "auto":
        return lcm(int(planning.rank_multiple), NARROWEST)
    width = experts.d_in
    return next((m for m in _MULTIPLES if width % m == 0 and width >= _FEWEST_WIDTHS * m), NARROWEST)


def losses_of(search: Search, experts: Experts) -> Floats:
    """Return the expected losses of experts at widths 0 to that of the model, in nats per token."""
    problem = around(search.weighting, search.model, experts)
    return np.asarray(_lost(problem.reads) + _lost(problem.writes))


def _lost(identity: Member) -> Floats:
    """Return what factors of an identity lose at every rank: the tail sums of the eigenvalues of S H S^T."""
    S, H = identity.S, identity.H
    assert H is not None
    energy = torch.linalg.eigvalsh(S.apply(S.apply(H).T)).flip(0).clamp_min(0)
    return tails(energy).cpu().numpy()


def _key(experts: Experts) -> CurveKey:
    return (Narrow.kind, experts.name)
