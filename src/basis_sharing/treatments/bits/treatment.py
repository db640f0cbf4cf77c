"""The class of the treatment ``bits``."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from basis_sharing.linalg.truncation import Member
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.treatments.base import Candidate, Outcome, Search, Treatment
from basis_sharing.treatments.bits.candidates import bits_candidates
from basis_sharing.treatments.bits.solve import solve_bits
from basis_sharing.treatments.rounded import grids_for


class BitsTreatment(Treatment):
    """A weight in few bits: groups of consecutive inputs of an output have a scale in common."""

    kind: ClassVar[str] = Bits.kind
    summary: ClassVar[str] = "weights rounded to few bits, errors made up for"

    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return every projection with all numbers of bits that the settings offer."""
        return bits_candidates(search)

    def solve(self, problem: Sequence[Member], entry: Any, dtype: torch.dtype) -> Outcome:
        """Return the rounded weight of a projection."""
        assert isinstance(entry, Bits)
        return solve_bits(problem[0], entry, dtype)

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return the expected time to round every projection to all numbers of bits that are offered."""
        return len(grids_for(planning, 1)) * self.solving_seconds(shapes, planning)

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to round all projections."""
        seconds = (shapes.rounding_seconds(p) for p in shapes.decoder.projections)
        return sum(seconds) / shapes.processes
