"""The repair part of a recipe: refitting and training after the plan is carried out."""

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from basis_sharing.recipe.settings import Option, Settings

Refit = Literal["auto", "always", "anchored", "never"]


class Repair(Settings):
    """How coefficients are refitted and blocks trained."""

    refit: Annotated[
        Refit,
        Option(
            "Refit the coefficients on the compressed model: auto (as the method prescribes, anchored only where the "
            "text suffices), anchored (as method auto does: block by block towards the original's states, where it "
            "helps), always (as basis-sharing does from ratio 0.4 on), never",
            metavar="WHEN",
        ),
    ] = "auto"
    refine: Annotated[
        float | None,
        Option(
            "Train the factors of each block towards the original's states for about this many minutes",
            metavar="MINUTES",
            default="no",
        ),
    ] = Field(default=None, gt=0)


class RepairKeywords(TypedDict, total=False):
    """The settings of :class:`Repair` as Python keywords."""

    refit: Refit
    refine: float | None
