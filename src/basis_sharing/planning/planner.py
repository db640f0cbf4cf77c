"""The planner: from measured candidates to the plan that meets a target at the least expected loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import Allocation, Curve, allocate
from basis_sharing.plans.plan import (
    Plan,
    PlanGroup,
    PlannedFor,
    Prediction,
    dense_parameters,
    multiplications,
    stored_parameters,
)
from basis_sharing.recipe.recipe import Form
from basis_sharing.treatments.factors.candidates import Candidate, Candidates

Resource = Literal["parameters", "multiplications"]
_RATIO_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Planner:
    """Everything needed to answer "which plan for this target?" without looking at the model again.

    Attributes:
        decoder: Structure of the model.
        candidates: Its measured candidates.
        method: Method the plans are for.
        gradients: Whether the candidates were measured with loss gradients.
        form: How factors are stored.
        rank_multiple: Ranks are multiples of this.
        planned_for: The model, as the plans name it.
    """

    decoder: Decoder
    candidates: Candidates
    method: str
    gradients: bool
    form: Form
    rank_multiple: int = 1
    planned_for: PlannedFor | None = None

    def within(self, budget: float, resource: Resource = "parameters") -> Plan:
        """Return the plan with the least expected loss that stays within a budget of the projections' resource.

        Raises:
            UnreachableError: No plan does.
        """
        curves = [self._curve(candidate, resource) for candidate in self.candidates.groups]
        return self._plan(curves, allocate(curves, self.candidates.lanes, budget))

    def at_ratio(self, ratio: float) -> Plan:
        """Return the plan that removes a fraction of the parameters."""
        return self.within((1 - ratio) * dense_parameters(self.decoder))

    def within_loss(self, loss: float) -> Plan:
        """Return the smallest plan, within 0.01 % of the ratio, whose expected loss stays below ``loss``.

        Raises:
            PlanError: Every compression is expected to cost more.
        """
        low, high = 0.0, 1.0
        best: Plan | None = None
        while high - low > _RATIO_TOLERANCE:
            ratio = (low + high) / 2
            try:
                plan = self.at_ratio(ratio)
            except PlanError:
                high = ratio
                continue
            assert plan.prediction is not None
            if plan.prediction.loss <= loss:
                low, best = ratio, plan
            else:
                high = ratio
        if best is None or not best.groups:
            raise PlanError(
                f"the target cannot be met: every compression is expected to cost more than {loss:.2g} nats per token."
            )
        return best

    def _curve(self, candidate: Candidate, resource: Resource) -> Curve:
        d_in, d_outs = candidate.members[0].d_in, tuple(p.d_out for p in candidate.members)
        most, dense = len(candidate.losses) - 1, d_in * sum(d_outs)
        ranks = np.arange(self.rank_multiple, most, self.rank_multiple)
        if resource == "parameters":
            costs = stored_parameters(d_in, sum(d_outs), ranks, self.form)
        else:
            costs = multiplications(d_in, d_outs, ranks, self.form)
        # A shared group that multiplies more than the dense matrices may still be the smallest to store.
        useful = (stored_parameters(d_in, sum(d_outs), ranks, self.form) < dense) & (np.diff(costs, prepend=-1) > 0)
        ranks, costs, losses = ranks[useful], costs[useful], candidate.losses[ranks[useful]]
        if len(candidate.members) == 1 or not len(ranks):
            ranks, costs, losses = np.append(ranks, d_in), np.append(costs, dense), np.append(losses, 0.0)
        return Curve(ranks, costs.astype(float), losses)

    def _plan(self, curves: Sequence[Curve], found: Allocation) -> Plan:
        groups = []
        for choice in found.choices:
            curve, candidate = curves[choice.candidate], self.candidates.groups[choice.candidate]
            if curve.ranks[choice.position] == candidate.members[0].d_in:
                continue  # it stays dense
            group = PlanGroup(
                members=tuple(p.name for p in candidate.members),
                rank=int(curve.ranks[choice.position]),
                form=self.form,
                loss=float(curve.losses[choice.position]),
            )
            groups.append(((candidate.members[0].block, candidate.members[0].input), group))
        groups.sort(key=lambda item: item[0])
        plan = Plan(
            method=self.method,
            ratio=0.0,
            gradients=self.gradients,
            planned_for=self.planned_for,
            prediction=Prediction(loss=found.loss),
            groups=tuple(group for _, group in groups),
        )
        return plan.model_copy(update={"ratio": plan.removed_fraction(self.decoder)})
