"""Plans for the targets of a recipe: a ratio, limits on costs, or a limit on the rise of perplexity."""

import math
from collections.abc import Callable
from typing import Any

from basis_sharing.costs.base import COSTS, Cost
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.planning.allocation import UnreachableError
from basis_sharing.planning.planner import Planner
from basis_sharing.plans.plan import Plan, Prediction, dense_parameters
from basis_sharing.recipe.target import Target

_MOST_EXTRAPOLATION = 3.0


def costs_of(target: Target, model: Any) -> list[Cost]:
    """Return the currencies that a target limits; parameters if it limits none, or only the loss.

    They come in the order of the settings. Whether sharing pays is asked in the first one: in parameters or bytes, if
    these are limited, since a shared basis saves them before it saves multiplications.
    """
    itemsize = model.dtype.itemsize
    by_limit = {cost.limit: cost for cost in COSTS.values()}
    named = [by_limit[limit](itemsize) for limit in target.limits]
    return named or [Parameters(itemsize)]


def plan_for(target: Target, model: Any, planner: Planner) -> Plan:
    """Return the plan for a ratio or for limits on costs.

    Raises:
        PlanError: The target cannot be met, with the best possible value, or is met by the original model.
    """
    decoder, costs = planner.decoder, costs_of(target, model)
    if target.ratio is not None:
        # Keep this expression: its rounding is that of version 0.1.0, so that a ratio gives the same ranks.
        budgets = [(costs[0], (1 - target.ratio) / (1 / dense_parameters(decoder)))]
        names = [f"--ratio {target.ratio:,}"]
    else:
        limits = [(cost, cost.limit) for cost in costs if cost.limit is not None]
        budgets = [(cost, cost.budget(target.limits[limit], model, decoder)) for cost, limit in limits]
        names = [f"--{limit.replace('_', '-')} {target.limits[limit]:,}" for _, limit in limits]
    try:
        plan = planner.within(budgets)
    except UnreachableError as error:
        cost = costs[error.limit]
        if target.ratio is not None:
            best = f"{1 - error.least / dense_parameters(decoder):.4f}"
        else:
            best = f"{cost.whole(error.least, model, decoder):,.0f}"
        raise PlanError(
            f"{names[error.limit]} cannot be met: the best possible, with the cheapest options everywhere, is {best}."
        ) from None
    if not plan.entries:
        verb = "are" if len(names) > 1 else "is"
        raise PlanError(f"{' and '.join(names)} {verb} met by the original already: there is nothing to compress.")
    return plan


def plan_for_increase(increase: float, planner: Planner, measured: Callable[[Plan], Prediction]) -> Plan:
    """Return the smallest plan whose perplexity is expected to rise by at most the fraction ``increase``.

    The plan for the allowed loss under the unscaled prediction is measured, to scale the prediction. The expected loss
    of the returned plan is at most three times that of the measured one.

    Args:
        increase: The maximum rise of perplexity, as a fraction.
        planner: The planner.
        measured: Measures a plan and returns its scaled prediction.

    Raises:
        PlanError: The target cannot be met.
    """
    allowed = math.log1p(increase)
    prediction = measured(planner.within_loss(allowed))
    assert prediction.scale is not None
    plan = planner.within_loss(min(allowed / prediction.scale, _MOST_EXTRAPOLATION * prediction.loss))
    assert plan.prediction is not None
    return plan.model_copy(update={"prediction": prediction.model_copy(update={"loss": plan.prediction.loss})})
