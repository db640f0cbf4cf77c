"""The result of planning: a plan, and curves of expected loss against size and speed."""

from pydantic import Field

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
        speeds: Expected speed by phase, as a multiple of the original's; empty if it was not computed.
    """

    method: str
    ratio: float
    parameters: int
    multiplications: int
    loss: float
    speeds: dict[str, float] = Field(default_factory=dict)


class BitPoint(Frozen):
    """One plan on a curve of expected loss against bytes.

    Attributes:
        method: ``"auto"``; ``"bits alone"`` and ``"ranks alone"``: the planner without its other options; or the name
            of a method that rounds every weight to the same number of bits.
        bits: Bits per weight of the compressible projections that it may have, scales and indices counted.
        bytes: Bytes of the whole model that it has.
        loss: Expected rise of the loss in nats per token, before any scaling.
    """

    method: str
    bits: float
    bytes: int
    loss: float


class RoleForecast(Frozen):
    """What a plan does to the projections of one role.

    Attributes:
        role: The role.
        projections: How many projections have it.
        dense: How many of them stay dense.
        kept: Fraction of the rank that they keep on average, dense ones 1.
        loss: Expected rise of the loss in nats per token, before any scaling.
        original: Seconds of these projections in the original, by phase.
        seconds: Seconds with the plan, by phase.
    """

    role: str
    projections: int
    dense: int
    kept: float
    loss: float
    original: dict[str, float]
    seconds: dict[str, float]


class Forecast(Frozen):
    """A plan, and the curves of expected loss against size and speed.

    Attributes:
        plan: The plan for the target.
        dense_parameters: Parameters of the whole original model.
        dense_multiplications: Multiplications per token in its compressible projections.
        points: The curves of the planner, for sizes, and of the published methods.
        speed_points: The curve of the planner for speeds, each the least speed in all phases.
        bit_points: The curves against bytes of the planner, with all and with some of its options, and of rounding to
            the same number of bits; empty unless bytes or bits are limited.
        roles: What the plan does to every role.
        rank_multiples: What the ranks of the plan are multiples of, in words; None: every rank is possible.
        unrounded_loss: Expected loss of the best plan of the same size without rank multiples; None if there are none
            or the target limits time.
        unranked_loss: Expected loss of the best plan in the same bytes that gives no projection a rank; None if there
            is no such plan, or the plan itself is one.
        unshared_loss: Expected loss of the best plan of the same size without sharing across layers; None if the plan
            itself has no such sharing.
        notes: Notes on unusual events, one sentence each.
    """

    plan: Plan
    dense_parameters: int
    dense_multiplications: int
    points: tuple[Point, ...]
    speed_points: tuple[Point, ...] = ()
    bit_points: tuple[BitPoint, ...] = ()
    roles: tuple[RoleForecast, ...] = ()
    rank_multiples: str | None = None
    unrounded_loss: float | None = None
    unranked_loss: float | None = None
    unshared_loss: float | None = None
    notes: tuple[str, ...] = ()
