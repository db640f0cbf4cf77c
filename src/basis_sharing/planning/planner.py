"""The planner: from measured candidates to the plan that meets a target at the least expected loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from basis_sharing.costs.base import Cost
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import Allocation, allocate
from basis_sharing.planning.space import PricedScope, Space, priced, restricted
from basis_sharing.plans.plan import Plan, PlannedFor, Prediction, dense_parameters

_RATIO_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Planner:
    """Everything needed to answer "which plan for this target?" without looking at the model again.

    Attributes:
        decoder: Structure of the model.
        space: Its measured candidates.
        method: Method the plans are for.
        gradients: Whether the candidates were measured with loss gradients.
        planned_for: The model, as the plans name it.
    """

    decoder: Decoder
    space: Space
    method: str
    gradients: bool
    planned_for: PlannedFor | None = None
    _priced: dict[tuple[str, ...], list[PricedScope]] = field(default_factory=dict, repr=False, compare=False)

    def within(self, budgets: Sequence[tuple[Cost, float]]) -> Plan:
        """Return the plan with the least expected loss that stays within budgets of the projections' costs.

        Args:
            budgets: Currencies, each with the most that the compressible projections may cost in it.

        Raises:
            UnreachableError: No plan does.
        """
        scopes = self._prices([cost for cost, _ in budgets])
        curves = [scope.curve for scope in scopes]
        return self._plan(scopes, allocate(curves, self.space.lanes, [budget for _, budget in budgets]))

    def at_ratio(self, ratio: float) -> Plan:
        """Return the plan that removes a fraction of the parameters."""
        return self.within([(Parameters(), (1 - ratio) * dense_parameters(self.decoder))])

    def of_size(self, parameters: int) -> Plan:
        """Return the plan whose projections have at most so many parameters."""
        return self.within([(Parameters(), parameters)])

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
        if best is None or not best.entries:
            raise PlanError(
                f"the target cannot be met: every compression is expected to cost more than {loss:.2g} nats per token."
            )
        return best

    def without_sharing_across_depth(self) -> "Planner":
        """Return the planner that shares nothing across layers, with nothing measured again."""
        space = restricted(self.space, self.decoder, across_depth=False)
        return replace(self, space=space, _priced={})

    def _prices(self, costs: Sequence[Cost]) -> list[PricedScope]:
        key = tuple(f"{cost.name}/{cost.itemsize}" for cost in costs)
        if key not in self._priced:
            self._priced[key] = [priced(scope, costs) for scope in self.space.scopes]
        return self._priced[key]

    def _plan(self, scopes: Sequence[PricedScope], allocation: Allocation) -> Plan:
        entries = []
        for choice in allocation.choices:
            scope = scopes[choice.candidate]
            entry = scope.entry(choice.position)
            if entry is not None:
                first = scope.scope.projections[0]
                loss = float(scope.curve.losses[choice.position])
                entries.append(((first.block, first.input), replace(entry, loss=loss)))
        entries.sort(key=lambda item: item[0])
        plan = Plan(
            method=self.method,
            ratio=0.0,
            gradients=self.gradients,
            planned_for=self.planned_for,
            prediction=Prediction(loss=allocation.loss),
            entries=tuple(entry for _, entry in entries),
        )
        return plan.model_copy(update={"ratio": plan.removed_fraction(self.decoder)})
