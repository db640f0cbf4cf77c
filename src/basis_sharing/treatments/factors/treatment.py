"""The class of the treatment ``factors``."""

from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any, ClassVar

import torch

from basis_sharing.linalg.truncation import Member, Truncation, truncate
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.base import Candidate, Outcome, Search, Treatment
from basis_sharing.treatments.factors.candidates import factor_candidates
from basis_sharing.treatments.factors.rounding import solve_rounded
from basis_sharing.treatments.factors.solve import solve_factors

_JOINT_CANDIDATES = 0.7  # time to measure the candidates across roles, relative to the single projections in them
# Groups across blocks that are measured: of a role that is given up; of one that shares, per block. Narrow roles share.
_GIVEN_UP, _SHARING = 7, 3.0


class FactorsTreatment(Treatment):
    """Low-rank factors: a basis for one or more projections, and coefficients for each of them.

    Args:
        remembered: Cache of decompositions by members, for solving several plans; all of them must be of one model and
            one weighting. None: decompositions are not cached.
    """

    kind: ClassVar[str] = Factors.kind
    summary: ClassVar[str] = "low-rank factors; projections may share a basis across layers and roles"

    def __init__(self, remembered: MutableMapping[tuple[str, ...], Truncation] | None = None) -> None:
        self._remembered = remembered

    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return single projections and the groups allowed by the settings: across roles, across blocks, or both."""
        return factor_candidates(search)

    def solve(self, problem: Sequence[Member], entry: Any, dtype: torch.dtype) -> Outcome:
        """Return the factors of a group at the rank, in the form and in the bits of its entry."""
        assert isinstance(entry, Factors)
        if entry.basis_grid is not None:
            return solve_rounded(problem, entry, dtype, self._decomposed(problem, entry))
        return solve_factors(problem, entry, dtype, self._decomposed(problem, entry))

    def _decomposed(self, problem: Sequence[Member], entry: Factors) -> Truncation:
        if self._remembered is None:
            return truncate(problem)
        if entry.members not in self._remembered:
            self._remembered[entry.members] = truncate(problem)
        return self._remembered[entry.members]

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return the expected time to measure all candidates, in seconds."""
        blocks, readers = len(shapes.decoder.blocks), Counter((p.block, p.input) for p in shapes.decoder.projections)
        seconds = 0.0
        for p in shapes.decoder.projections:
            own = shapes.measuring_seconds(p)
            if planning.across_depth:
                groups = min(1.0, _GIVEN_UP / blocks) if p.d_out > p.d_in / 2 else _SHARING
                own += groups * shapes.sharing_seconds(p)
            joint = planning.across_roles and readers[p.block, p.input] > 1
            seconds += own * (1 + _JOINT_CANDIDATES * joint)
        return seconds / shapes.processes

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long all decompositions take, and finding pivots, which takes as long."""
        return super().solving_seconds(shapes, planning) * (2 if planning.stored_form == "pivoted" else 1)
