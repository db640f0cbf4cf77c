"""Plans for the targets of a recipe: a ratio, limits on costs and time, or a limit on the rise of perplexity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from basis_sharing.costs.base import COSTS, Cost
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import UnreachableError
from basis_sharing.planning.clock import TimeLimit
from basis_sharing.planning.planner import Planner
from basis_sharing.plans.plan import Plan, Prediction, dense_parameters
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.rounding import Rounding
from basis_sharing.recipe.target import Target
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.treatments.embeddings import saved_bytes
from basis_sharing.treatments.rounded import grid_for

_MOST_EXTRAPOLATION = 3.0
_FEWEST_FAST, _ALL_WIDTHS = 4, (8, 4, 3, 2)


def costs_of(target: Target, model: Any) -> list[Cost]:
    """Return the currencies that a target limits, except time; parameters if it limits none, or only the loss.

    For a limit on time alone it is multiplications, which are known without measuring. They come in the order of the
    settings. Whether sharing pays is asked in the first one: in parameters or bytes, if these are limited, since a
    shared basis saves them before it saves multiplications.
    """
    itemsize = model.dtype.itemsize
    by_limit = {cost.limit: cost for cost in COSTS.values()}
    named = [by_limit[limit](itemsize) for limit in target.limits]
    if target.bits is not None and target.max_bytes is None:
        named.append(Bytes(itemsize))
    only_time = target.limits_time and target.ratio is None and target.max_perplexity_increase is None
    return named or [Multiplications(itemsize) if only_time else Parameters(itemsize)]


def with_widths(planning: Planning, target: Target, model: Any, decoder: Decoder) -> Planning:
    """Return settings of the planner with the numbers of bits that weights may be rounded to.

    They are 8 and 4, and 3 and 2 as well where a limit on bytes or bits cannot be met in 4 bits.
    """
    if planning.widths is not None or not target.limits_bytes:
        return planning
    stored = Bytes(model.dtype.itemsize)
    in_four_bits = stored.dense(decoder.experts) + sum(
        stored.of((p,), Bits.of(p.name, grid_for(planning, _FEWEST_FAST, p.d_in))) for p in decoder.projections
    )
    budgets = _budgets(target, planning, model, decoder, ())
    enough = all(budget.budget >= in_four_bits for budget in budgets if budget.cost.name == stored.name)
    return planning if enough else planning.model_copy(update={"widths": _ALL_WIDTHS})


@dataclass(frozen=True)
class _Budget:
    """A limit as a budget of the compressible projections.

    Attributes:
        cost: The currency.
        budget: What the projections may cost.
        name: The limit as the user gave it.
        best: Returns how the limit reads if the projections cost so much.
    """

    cost: Cost
    budget: float
    name: str
    best: Callable[[float], str]


def _budgets(
    target: Target, planning: Rounding, model: Any, decoder: Decoder, limits: Sequence[TimeLimit]
) -> list[_Budget]:
    """Return the budgets for a ratio, for limits on costs, and for limits on time."""
    budgets = []
    if target.ratio is not None:
        dense = dense_parameters(decoder)
        # Keep this expression: its rounding is that of version 0.1.0, so that a ratio gives the same ranks.
        kept = (1 - target.ratio) / (1 / dense)
        parameters = Parameters(model.dtype.itemsize)
        budgets.append(_Budget(parameters, kept, f"--ratio {target.ratio:,}", lambda least: f"{1 - least / dense:.4f}"))
    if target.bits is not None:
        weights = dense_parameters(decoder)
        stored = Bytes(model.dtype.itemsize)
        allowed = target.bits * weights / 8
        budgets.append(_Budget(stored, allowed, f"--bits {target.bits:g}", lambda least: f"{8 * least / weights:.3f}"))
    for cost in [by_limit for by_limit in costs_of(target, model) if by_limit.limit in target.limits]:
        assert cost.limit is not None
        limit = target.limits[cost.limit]
        name = f"--{cost.limit.replace('_', '-')} {limit:,}"

        saved = saved_bytes(planning, model) if isinstance(cost, Bytes) else 0

        def best(least: float, cost: Cost = cost, saved: int = saved) -> str:
            return f"{cost.whole(least - saved, model, decoder):,.0f}"

        budgets.append(_Budget(cost, cost.budget(limit, model, decoder) + saved, name, best))
    for time in limits:

        def fastest(least: float, time: TimeLimit = time) -> str:
            return time.best(least, model, decoder)

        budgets.append(_Budget(time.cost, time.budget(model, decoder), time.name, fastest))
    return budgets


def plan_for(
    target: Target, planning: Rounding, model: Any, planner: Planner, limits: Sequence[TimeLimit] = ()
) -> Plan:
    """Return the plan for a ratio, or for limits on costs and time.

    Raises:
        PlanError: The target cannot be met, with the best possible value, or is met by the original model.
    """
    budgets = _budgets(target, planning, model, planner.decoder, limits)
    names = [budget.name for budget in budgets]
    try:
        plan = planner.within([(budget.cost, budget.budget) for budget in budgets])
    except UnreachableError as error:
        raise _unreachable(budgets[error.limit], error) from None
    if not plan.entries:
        verb = "are" if len(names) > 1 else "is"
        raise PlanError(f"{' and '.join(names)} {verb} met by the original already: there is nothing to compress.")
    return plan


def _unreachable(budget: _Budget, error: UnreachableError) -> PlanError:
    return PlanError(
        f"{budget.name} cannot be met: the best possible, with the cheapest options everywhere, is "
        f"{budget.best(error.least)}."
    )


def plan_for_increase(
    target: Target,
    planning: Rounding,
    model: Any,
    planner: Planner,
    limits: Sequence[TimeLimit],
    measured: Callable[[Plan], Prediction],
) -> Plan:
    """Return the smallest plan whose perplexity is expected to rise by at most ``max_perplexity_increase``.

    The plan for the allowed loss under the unscaled prediction is measured, to scale the prediction. The expected loss
    of the returned plan is at most three times that of the measured one.

    Args:
        target: The target.
        planning: How what is outside of the projections is rounded.
        model: The model.
        planner: The planner.
        limits: Limits on time, which the plan keeps as well.
        measured: Measures a plan and returns its scaled prediction.

    Raises:
        PlanError: The target cannot be met.
    """
    assert target.max_perplexity_increase is not None
    allowed = math.log1p(target.max_perplexity_increase)
    budgets = _budgets(target, planning, model, planner.decoder, limits)
    within = [(budget.cost, budget.budget) for budget in budgets]
    try:
        prediction = measured(planner.within_loss(allowed, within))
        assert prediction.scale is not None
        plan = planner.within_loss(min(allowed / prediction.scale, _MOST_EXTRAPOLATION * prediction.loss), within)
    except UnreachableError as error:
        raise _unreachable(budgets[error.limit], error) from None
    assert plan.prediction is not None
    return plan.model_copy(update={"prediction": prediction.model_copy(update={"loss": plan.prediction.loss})})
