"""The methods as presets: a weighting of errors, and a grouping with a rule for refits, or a kind of rounding."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """One method.

    Attributes:
        name: Name on the command line.
        summary: One line for ``--help`` and the report.
        weighting: Name of the weighting of errors, a module of :mod:`basis_sharing.weightings`.
        planned: Whether groups and ranks are chosen from measured loss; otherwise every group has the same rank.
        group_size: Number of consecutive layers that share a basis, for the roles that share; 1: no sharing.
        refit: How the coefficients are refitted on the compressed flow: "never", "always" (all at once, as in Basis
            Sharing) or "anchored" (block by block, if it reduces the error).
        refit_from: Smallest ratio at which they are refitted.
        rounding: How all weights are rounded to the same number of bits; None: the method has factors.
    """

    name: str
    summary: str
    weighting: str
    planned: bool = False
    group_size: int = 1
    refit: Literal["never", "always", "anchored"] = "never"
    refit_from: Fraction = Fraction(0)
    rounding: Literal["nearest", "gptq"] | None = None


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
        Preset("rtn", "every weight rounded to the nearest number of --bits bits, no data", "none", rounding="nearest"),
        Preset(
            "gptq",
            "weights rounded to --bits bits, errors made up for at later inputs (Frantar et al. 2023)",
            "second-moment",
            rounding="gptq",
        ),
    )
}
