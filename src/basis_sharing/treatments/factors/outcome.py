"""What factorization makes of one group."""

from dataclasses import dataclass

from basis_sharing.runtime.surgery import GroupFactors


@dataclass(frozen=True)
class GroupOutcome:
    """The factors of one group and what they lose.

    Attributes:
        factors: Basis and coefficients, in the dtype they will be stored in.
        loss: What is lost in the unit of the weighting (nats per token for the planner's).
        relative_loss: That, as a share of what would be lost if nothing were kept.
        ridge: Relative ridge the second moment needed, 0 for none.
        not_pivoted: Why a group that should be pivoted is not; None where all is as planned.
    """

    factors: GroupFactors
    loss: float
    relative_loss: float
    ridge: float
    not_pivoted: str | None = None
