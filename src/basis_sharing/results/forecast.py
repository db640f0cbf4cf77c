"""The result of planning: a plan, and curves of expected loss against size."""

from basis_sharing.plans.plan import Plan
from basis_sharing.results.base import Frozen


class Point(Frozen):
    """One plan on the curve of a method.

    Attributes:
        method: Name of the method.
        ratio: Fraction of the parameters removed from the compressible projections.
        parameters: Parameters of the whole model.
        multiplications: Multiplications per token in the compressible projections.
        loss: Expected rise of the loss in nats per token, before any scaling.
    """

    method: str
    ratio: float
    parameters: int
    multiplications: int
    loss: float


class Forecast(Frozen):
    """A plan, and the curves of expected loss against size.

    Attributes:
        plan: The plan for the target.
        dense_parameters: Parameters of the whole original model.
        dense_multiplications: Multiplications per token in its compressible projections.
        points: The curves of the planner and of the published methods.
        unrounded_loss: Expected loss of the best plan of the same size without rank multiples; None if there are none.
        unshared_loss: Expected loss of the best plan of the same size without sharing across layers; None if the plan
            itself has no such sharing.
        notes: Notes on unusual events, one sentence each.
    """

    plan: Plan
    dense_parameters: int
    dense_multiplications: int
    points: tuple[Point, ...]
    unrounded_loss: float | None = None
    unshared_loss: float | None = None
    notes: tuple[str, ...] = ()
