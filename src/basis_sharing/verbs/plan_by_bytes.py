"""The part of ``plan`` that is about bytes: curves of the planner's options beside plain rounding."""

from collections.abc import Sequence
from typing import Any

from basis_sharing.costs.bytes import Bytes
from basis_sharing.errors import PlanError
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.published import rounded_plan
from basis_sharing.plans.plan import Plan, dense_parameters
from basis_sharing.recipe.planning import Planning
from basis_sharing.results.forecast import BitPoint
from basis_sharing.run.run import Run
from basis_sharing.treatments.base import Candidate, Curves
from basis_sharing.treatments.bits.published import rounded_losses
from basis_sharing.treatments.embeddings import saved_bytes
from basis_sharing.weightings.base import Weighting

BITS = (8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.75, 2.5)
ROUNDED = ("rtn", "gptq")


def _has_no_rank(candidate: Candidate) -> bool:
    return candidate.options[0].kind == "bits"


def _has_no_bits(candidate: Candidate) -> bool:
    return candidate.options[0].kind != "bits" and not candidate.options[0].tensors


def curves_by_bytes(
    planner: Planner, planning: Planning, run: Run, weighting: Weighting, curves: Curves
) -> list[BitPoint]:
    """Return the curves of the planner, of its options one by one, and of rounding to the same number of bits.

    Args:
        planner: The planner, with all its options.
        planning: Its settings.
        run: The run, with the dense model.
        weighting: The planner's weighting.
        curves: Cache of measured losses; new ones are added.
    """
    at, rounded = _Places(planning, run), list[BitPoint]()
    for method in ROUNDED:
        settings = planning.model_copy(update={"method": method})
        widths = sorted(planning.offered_widths, reverse=True)
        plans = [rounded_plan(settings, width, run.decoder) for width in widths]
        losses = rounded_losses(method, plans, run.model, run.decoder, weighting, curves, run.progress)
        rounded += [at.point(method, plan, loss) for plan, loss in zip(plans, losses, strict=True)]
    planners = {"auto": planner, "bits alone": planner.only(_has_no_rank), "ranks alone": planner.only(_has_no_bits)}
    bits = sorted({*BITS, *(point.bits for point in rounded)}, reverse=True)
    return [*(point for name, one in planners.items() for point in at.curve(name, one, bits)), *rounded]


def loss_without_ranks(plan: Plan, planner: Planner, run: Run) -> float | None:
    """Return the expected loss of the best plan in the bytes of a plan that gives no projection a rank; None: none."""
    itemsize = run.model.dtype.itemsize
    if all(entry.kind == "bits" for entry in plan.entries):
        return None
    budget = (Bytes(itemsize), plan.bytes(run.decoder, itemsize))
    try:
        unranked = planner.only(_has_no_rank).within([budget])
    except PlanError:
        return None
    assert unranked.prediction is not None
    return unranked.prediction.loss


class _Places:
    """Places of plans on curves against bytes.

    Args:
        planning: Settings of the planner.
        run: The run, with the dense model.
    """

    def __init__(self, planning: Planning, run: Run) -> None:
        model: Any = run.model
        self._decoder, self._itemsize = run.decoder, model.dtype.itemsize
        self._weights = dense_parameters(run.decoder)
        self._outside = int(Bytes(self._itemsize).outside(model, run.decoder)) - saved_bytes(planning, model)

    def point(self, method: str, plan: Plan, loss: float, bits: float | None = None) -> BitPoint:
        """Return the place of a plan that may have so many bits per weight; None: those that it has."""
        stored = plan.bytes(self._decoder, self._itemsize)
        bits = 8 * stored / self._weights if bits is None else bits
        return BitPoint(method=method, bits=bits, bytes=self._outside + stored, loss=loss)

    def curve(self, method: str, planner: Planner, allowed: Sequence[float]) -> list[BitPoint]:
        """Return the curve of a planner, down to the fewest bits that it reaches."""
        points = []
        for bits in allowed:
            if bits >= 8 * self._itemsize:
                continue
            try:
                plan = planner.within([(Bytes(self._itemsize), bits * self._weights / 8)])
            except PlanError:
                break
            assert plan.prediction is not None
            points.append(self.point(method, plan, plan.prediction.loss, bits))
        return points
