"""The class of the treatment ``experts``."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from basis_sharing.models.family import Compressible, Experts
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.expert_entries_basis_sharing import Narrow
from basis_sharing.treatments.base import Candidate, Outcome, Search, Treatment
from basis_sharing.treatments.experts.candidates import expert_candidates
from basis_sharing.treatments.experts.problem import around
from basis_sharing.treatments.experts.solve import solve_experts
from basis_sharing.weightings.base import Weighting


class ExpertsTreatment(Treatment):
    """Narrow experts: the experts of a block at a smaller width, between two bases that all of them share."""

    kind: ClassVar[str] = Narrow.kind
    summary: ClassVar[str] = "the experts of a block at a smaller width, between two bases that they share"

    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return the experts of every block at all smaller widths."""
        return expert_candidates(search)

    def problem(self, weighting: Weighting, model: Any, scope: Sequence[Compressible]) -> Sequence[Any]:
        """Return the experts with their weightings."""
        (experts,) = scope
        assert isinstance(experts, Experts)
        return [around(weighting, model, experts)]

    def solve(self, problem: Sequence[Any], entry: Any, dtype: torch.dtype) -> Outcome:
        """Return the two bases and the narrow experts."""
        assert isinstance(entry, Narrow)
        return solve_experts(problem[0], entry, dtype)

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return the expected time to measure all widths, in seconds."""
        sides = (side for experts in shapes.decoder.experts for side in (experts.reads, experts.writes))
        return sum(shapes.measuring_seconds(side) for side in sides) / shapes.processes

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to narrow all experts."""
        sides = (side for experts in shapes.decoder.experts for side in (experts.reads, experts.writes))
        products = sum(shapes.narrowing_seconds(experts) for experts in shapes.decoder.experts)
        return (sum(shapes.solving_seconds(side) for side in sides) + products) / shapes.processes
