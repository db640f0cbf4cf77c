"""The bits that the planner may choose for every projection, each with the loss of the weight rounded to them."""

from collections.abc import Sequence

import numpy as np
import torch

from basis_sharing.linalg.rounding import loss_of_error, with_feedback
from basis_sharing.linalg.truncation import Member
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Projection
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.treatments.base import Candidate, CurveKey, Floats, Search
from basis_sharing.treatments.measuring import measure_missing
from basis_sharing.treatments.rounded import grids_for, scale_dtype


def bits_candidates(search: Search) -> list[Candidate]:
    """Return every projection with all grids that are offered, after measuring those that are not known."""
    asked = {
        _key(p, grids): (p, grids) for p in search.decoder.projections if (grids := grids_for(search.planning, p.d_in))
    }
    missing = [(key, *found) for key, found in asked.items() if key not in search.curves]

    def measured(item: tuple[CurveKey, Projection, list[Grid]]) -> dict[CurveKey, Floats]:
        key, p, grids = item
        (member,) = search.weighting.problem(search.model, (p,))
        return {key: losses_of(member, grids, weight(search.model, p).dtype)}

    measure_missing(search, missing, measured, "measuring bits")
    return [
        Candidate((p,), [Bits.of(p.name, grid) for grid in grids], search.curves[key])
        for key, (p, grids) in asked.items()
    ]


def _key(p: Projection, grids: Sequence[Grid]) -> CurveKey:
    return (f"{Bits.kind} {' '.join(map(str, grids))}", p.name)


def losses_of(member: Member, grids: Sequence[Grid], dtype: torch.dtype) -> Floats:
    """Return the losses of a weight rounded to several grids.

    Args:
        member: The weight with its weightings.
        grids: The grids.
        dtype: Dtype in which scales are stored.
    """
    W, G, H = member.W.T.float(), member.G, member.H
    rounded = with_feedback(W, grids, G, stored=scale_dtype(dtype))
    return np.array([loss_of_error(one.matrix() - W, G, H) for one in rounded])
