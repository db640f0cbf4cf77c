"""What compression will cost, before anything is compressed: a plan and the curve it lies on."""

from basis_sharing.plans.plan import Plan
from basis_sharing.results.base import Frozen


class Point(Frozen):
    """One plan on the curve of a method.

    Attributes:
        method: Name of the method.
        ratio: Fraction of the parameters removed from the compressible projections.
        parameters: Parameters of the whole model.
        multiplications: Multiplications per token in the compressible projections.
        loss: Expected loss rise in nats per token, before any scaling.
    """

    method: str
    ratio: float
    parameters: int
    multiplications: int
    loss: float


class Forecast(Frozen):
    """A plan and what surrounds it.

    Attributes:
        plan: The plan for the target.
        dense_parameters: Parameters of the whole original model.
        dense_multiplications: Multiplications per token in its compressible projections.
        points: The curves of the planner and of the published methods.
        unrounded_loss: Expected loss of the plan without rank multiples; None where there are none.
        unshared_loss: Expected loss of the best plan of that size that shares nothing across layers; None where the
            plan does not either.
    """

    plan: Plan
    dense_parameters: int
    dense_multiplications: int
    points: tuple[Point, ...]
    unrounded_loss: float | None = None
    unshared_loss: float | None = None
