"""The published methods as presets of one mechanism (DESIGN 3.6), as data.

A method is a weighting of errors, a grouping, and a rule for refitting the coefficients; ours is one of them.
"""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Literal


class Weighting(StrEnum):
    """What the error of a weight matrix is weighted with."""

    NONE = "none"
    FISHER = "fisher"
    MEAN_ABSOLUTE = "mean-absolute"
    SECOND_MOMENT = "second-moment"
    SENSITIVITY = "sensitivity"
    LOSS = "loss"


@dataclass(frozen=True)
class Preset:
    """One published method.

    Attributes:
        name: Name on the command line.
        summary: One line for ``--help`` and the report.
        weighting: What errors are weighted with.
        planned: Whether groups and ranks are chosen from measured loss, instead of the same rank for every group.
        group_size: Number of consecutive layers that share a basis, for the roles that share; 1 shares nothing.
        refit: How the coefficients are refitted on the compressed flow: "never", "always", as Basis Sharing does, or
            "anchored", block by block where it helps.
        refit_from: Ratio from which they are.
    """

    name: str
    summary: str
    weighting: Weighting
    planned: bool = False
    group_size: int = 1
    refit: Literal["never", "always", "anchored"] = "never"
    refit_from: Fraction = Fraction(0)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "auto",
            "groups and ranks planned from measured loss, errors weighted with inputs and loss gradients",
            Weighting.LOSS,
            planned=True,
            refit="anchored",
        ),
        Preset("svd", "plain singular value decomposition of every weight, no data", Weighting.NONE),
        Preset(
            "fwsvd",
            "rows weighted by Fisher information (Hsu et al. 2022); needs a backward pass",
            Weighting.FISHER,
        ),
        Preset(
            "asvd",
            "rows weighted by the square root of the mean absolute activation (Yuan et al. 2023), uniform ranks",
            Weighting.MEAN_ABSOLUTE,
        ),
        Preset(
            "svd-llm",
            "whitened by the Cholesky factor of the second moment (Wang et al. 2024); nothing is shared",
            Weighting.SECOND_MOMENT,
        ),
        Preset(
            "basis-sharing",
            "svd-llm with bases shared by neighbouring layers (Wang et al., ICLR 2025), refitted from 40 % on",
            Weighting.SECOND_MOMENT,
            group_size=2,
            refit="always",
            refit_from=Fraction(2, 5),
        ),
    )
}
