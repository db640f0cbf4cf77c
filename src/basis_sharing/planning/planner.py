"""The planner: plans that meet a target with the least expected loss, from measured candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from basis_sharing.costs.base import Cost
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import Allocation, allocate
from basis_sharing.planning.space import PricedScope, Space, arranged, priced, restricted
from basis_sharing.plans.plan import Plan, PlannedFor, Prediction, dense_parameters
from basis_sharing.treatments.base import Candidate

_RATIO_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Planner:
    """Makes plans for any target from the measured candidates of a model, without using the model again.

    Attributes:
        decoder: Structure of the model.
        space: Its measured candidates.
        method: Name of the method, for the plans.
        gradients: Whether the candidates were measured with loss gradients.
        planned_for: The model, for the plans.
    """

    decoder: Decoder
    space: Space
    method: str
    gradients: bool
    planned_for: PlannedFor | None = None
    _priced: dict[tuple[str, ...], list[PricedScope]] = field(default_factory=dict, repr=False, compare=False)

    def within(self, budgets: Sequence[tuple[Cost, float]]) -> Plan:
        """Return the plan with the least expected loss within budgets.

        Args:
            budgets: Currencies, each with the maximum cost of the compressible projections.

        Raises:
            UnreachableError: Even the cheapest options exceed a budget.
            PlanError: The budgets cannot be met together.
        """
        scopes = self._prices([cost for cost, _ in budgets])
        curves = [scope.curve for scope in scopes]
        return self._plan(scopes, allocate(curves, self.space.lanes, [budget for _, budget in budgets]))

    def at_ratio(self, ratio: float) -> Plan:
        """Return the plan that removes at least a fraction of the parameters of the compressible projections."""
        return self.within(self._of_ratio(ratio))

    def _of_ratio(self, ratio: float) -> list[tuple[Cost, float]]:
        return [(Parameters(), (1 - ratio) * dense_parameters(self.decoder))]

    def _least_loss_within(self, limits: Sequence[tuple[Cost, float]], loss: float) -> Plan | None:
        """Return the plan with the least loss within limits if it is compressed; None if the original is within them.

        Raises:
            UnreachableError: Even the cheapest options exceed a limit.
            PlanError: The loss is larger than ``loss``.
        """
        plan = self.within(limits)
        assert plan.prediction is not None
        if plan.prediction.loss > loss:
            raise PlanError(
                f"the targets cannot be met together: within the limit on time, {plan.prediction.loss:.2g} nats per "
                f"token are the least expected loss, more than the {loss:.2g} that are allowed."
            )
        return plan if plan.entries else None

    def of_size(self, parameters: int) -> Plan:
        """Return the plan whose compressible projections have at most ``parameters`` parameters."""
        return self.within([(Parameters(), parameters)])

    def as_small_as(self, plan: Plan, itemsize: int) -> Plan:
        """Return the plan of the size of another one: of its bytes if that one rounds, else of its parameters."""
        if any(entry.tensors for entry in plan.entries):
            return self.within([(Bytes(itemsize), plan.bytes(self.decoder, itemsize))])
        return self.of_size(plan.parameters(self.decoder))

    def within_loss(self, loss: float, limits: Sequence[tuple[Cost, float]] = ()) -> Plan:
        """Return the smallest plan whose expected loss is at most ``loss``, up to a tolerance of 1e-4 in the ratio.

        Args:
            loss: The maximum loss, in nats per token.
            limits: Further currencies, each with the maximum cost of the compressible projections.

        Raises:
            UnreachableError: Even the cheapest options exceed one of these.
            PlanError: The expected loss of every compression, or of every one within the limits, is larger.
        """
        low, high = 0.0, 1.0
        best: Plan | None = None
        if limits:
            best = self._least_loss_within(limits, loss)
        while high - low > _RATIO_TOLERANCE:
            ratio = (low + high) / 2
            try:
                plan = self.within([*self._of_ratio(ratio), *limits])
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

    def with_new_prices(self) -> "Planner":
        """Return the planner after measured costs have changed."""
        return replace(self, _priced={})

    def only(self, wanted: Callable[[Candidate], bool]) -> "Planner":
        """Return the planner with some of the candidates; none is measured again."""
        candidates = [c for scope in self.space.scopes for c in scope.candidates if len(c.options) and wanted(c)]
        return replace(self, space=arranged(self.decoder, candidates), _priced={})

    def without_sharing_across_depth(self) -> "Planner":
        """Return the planner without sharing across layers; no candidate is measured again."""
        space = restricted(self.space, self.decoder, across_depth=False)
        return replace(self, space=space, _priced={})

    def _prices(self, costs: Sequence[Cost]) -> list[PricedScope]:
        """Return all scopes priced in some currencies, from the cache if they were priced before."""
        key = tuple(cost.key for cost in costs)
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
