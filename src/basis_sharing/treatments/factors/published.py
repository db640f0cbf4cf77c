"""Expected losses of the published methods' plans, in nats per token."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from basis_sharing.linalg.truncation import losses_under, truncate
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.run.progress import Progress, ProgressCallback
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.base import Curves
from basis_sharing.weightings.base import WEIGHTINGS, Weighting


def published_losses(
    method: str,
    plans: Mapping[Fraction, Plan],
    model: Any,
    decoder: Decoder,
    weighting: Weighting,
    curves: Curves,
    progress: ProgressCallback,
) -> dict[Fraction, float]:
    """Return the expected losses of a published method's plans, in nats per token, by ratio; refits are ignored.

    The factors are computed under the method's own weighting, and their losses are evaluated under the planner's
    weighting, at all ranks at once.

    Args:
        method: Name of the method.
        plans: Its plans by ratio, with the same groups and different ranks.
        model: The dense model.
        decoder: Its structure.
        weighting: The planner's weighting; the method's weighting is derived from its statistics.
        curves: Cache of measured losses; new ones are added.
        progress: Receives one event per measured group.
    """
    totals = dict.fromkeys(plans, 0.0)
    if not plans:
        return totals
    own = WEIGHTINGS[PRESETS[method].weighting].from_known(weighting, decoder.projections)
    groups = [_factors(plan) for plan in plans.values()]
    for done, same in enumerate(zip(*groups, strict=True), start=1):
        members = [decoder.projection_by_name[name] for name in same[0].members]
        key = (f"{Factors.kind} by {method}", *same[0].members)
        curve = curves.get(key)
        if curve is None:
            factors = truncate(own.problem(model, members))
            curve = curves[key] = losses_under(weighting.problem(model, members), factors).numpy()
            progress(Progress(f"predicting {method}", done, len(groups[0]), "groups"))
        for ratio, group in zip(plans, same, strict=True):
            totals[ratio] += float(curve[group.rank])
    return totals


def _factors(plan: Plan) -> list[Factors]:
    return [entry for entry in plan.entries if isinstance(entry, Factors)]
