"""The class of the treatment ``expert-factors``."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from basis_sharing.models.decoder import module
from basis_sharing.models.family import Compressible, Experts
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.expert_entries_basis_sharing import ExpertFactors
from basis_sharing.treatments.base import Candidate, Outcome, Search, Treatment
from basis_sharing.treatments.expert_factors.candidates import factor_candidates
from basis_sharing.treatments.expert_factors.problem import matrices
from basis_sharing.treatments.expert_factors.solve import solve_factors
from basis_sharing.weightings.base import Weighting


class ExpertFactorsTreatment(Treatment):
    """Factors of their own for the matrices of every expert, with a rank for each."""

    kind: ClassVar[str] = ExpertFactors.kind
    summary: ClassVar[str] = "low-rank factors for every expert, each with a rank of its own"

    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return the experts of every block with ranks for all of them."""
        return factor_candidates(search)

    def problem(self, weighting: Weighting, model: Any, scope: Sequence[Compressible]) -> Sequence[Any]:
        """Return the matrices with their weightings by name, and the biases."""
        (experts,) = scope
        assert isinstance(experts, Experts)
        members = {name: list(matrices(weighting, model, experts, name)) for name in experts.sizes}
        parameters = module(model, experts.name).named_parameters()
        return [members, {name: bias.detach() for name, bias in parameters if name not in members}]

    def solve(self, problem: Sequence[Any], entry: Any, dtype: torch.dtype) -> Outcome:
        """Return the factors of all experts."""
        assert isinstance(entry, ExpertFactors)
        members, biases = problem
        return solve_factors(members, biases, entry, dtype)

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return the expected time to measure the matrices of all experts, in seconds."""
        return (
            sum(shapes.expert_seconds(e, shapes.measuring_seconds) for e in shapes.decoder.experts) / shapes.processes
        )

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to factorize the matrices of all experts."""
        return sum(shapes.expert_seconds(e, shapes.solving_seconds) for e in shapes.decoder.experts) / shapes.processes
