"""The published methods as presets of one mechanism, as data.

A method is a weighting of errors, a grouping, and a rule for refitting the coefficients; ours is one of them.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """One published method.

    Attributes:
        name: Name on the command line.
        summary: One line for ``--help`` and the report.
        weighting: Name of the weighting of errors, a file in :mod:`basis_sharing.weightings`.
        planned: Whether groups and ranks are chosen from measured loss, instead of the same rank for every group.
        group_size: Number of consecutive layers that share a basis, for the roles that share; 1 shares nothing.
        refit: How the coefficients are refitted on the compressed flow: "never", "always", as Basis Sharing does, or
            "anchored", block by block where it helps.
        refit_from: Ratio from which they are.
    """

    name: str
    summary: str
    weighting: str
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
            "loss",
            planned=True,
            refit="anchored",
        ),
        Preset("svd", "plain singular value decomposition of every weight, no data", "none"),
        Preset(
            "fwsvd",
            "rows weighted by Fisher information (Hsu et al. 2022); needs a backward pass",
            "fisher",
        ),
        Preset(
            "asvd",
            "rows weighted by the square root of the mean absolute activation (Yuan et al. 2023), uniform ranks",
            "mean-absolute",
        ),
        Preset(
            "svd-llm",
            "whitened by the Cholesky factor of the second moment (Wang et al. 2024); nothing is shared",
            "second-moment",
        ),
        Preset(
            "basis-sharing",
            "svd-llm with bases shared by neighbouring layers (Wang et al., ICLR 2025), refitted from 40 % on",
            "second-moment",
            group_size=2,
            refit="always",
            refit_from=Fraction(2, 5),
        ),
    )
}
