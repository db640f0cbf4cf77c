"""The rounding part of a recipe: the numbers of bits that weights may be rounded to, and their scales."""

from typing import Annotated, TypedDict

from pydantic import Field, field_validator

from basis_sharing.recipe.model import names_in
from basis_sharing.recipe.settings import Option, Settings

ROUNDING, EMBEDDINGS = "Rounding", "Embeddings"
"""Headings of the settings that say how projections, and what is outside of them, are rounded."""
WIDTHS = range(2, 9)


class Rounding(Settings):
    """How weights are rounded to few bits, where that is allowed."""

    widths: Annotated[
        tuple[int, ...] | None,
        Option(
            "Numbers of bits that weights may be rounded to, e.g. 8,4; 3 and 2 are unpacked at every use",
            metavar="N,N",
            default="8,4; with 3,2 where a limit on bytes or bits cannot be met without them",
            panel=ROUNDING,
            text=True,
        ),
    ] = Field(default=None, min_length=1)
    scale_group: Annotated[
        int | None,
        Option(
            "Consecutive inputs of an output that have a scale in common; halved until it divides the inputs",
            metavar="N",
            default="64; in 8 bits all inputs, without zero points",
            panel=ROUNDING,
        ),
    ] = Field(default=None, ge=16)
    zero_points: Annotated[
        bool,
        Option("Round to multiples of a scale on both sides of zero alike", flag="--no-zero-points", panel=ROUNDING),
    ] = True

    embedding_bits: Annotated[
        int | None,
        Option(
            "Bits of the embeddings and of the output head: 8, with one scale per token",
            metavar="8",
            default="they stay as they are",
            panel=EMBEDDINGS,
        ),
    ] = None

    @field_validator("embedding_bits")
    @classmethod
    def _eight(cls, value: int | None) -> int | None:
        if value not in (None, 8):
            raise ValueError(f"embedding_bits {value} is not possible: give 8, or leave it out.")
        return value

    @field_validator("widths", mode="before")
    @classmethod
    def _whole_numbers(cls, value: object) -> object:
        if value is None:
            return value
        listed = (value,) if isinstance(value, int) else names_in(value)
        try:
            widths = tuple(int(width) for width in listed)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            widths = ()
        if not widths or not set(widths) <= set(WIDTHS):
            raise ValueError(
                f"widths {value!r} are no numbers of bits: give numbers from {WIDTHS[0]} to {WIDTHS[-1]}, e.g. 8,4."
            )
        return tuple(sorted(set(widths), reverse=True))

    @property
    def offered_widths(self) -> tuple[int, ...]:
        """The numbers of bits that weights may be rounded to, the most first."""
        return self.widths or (8, 4)


class RoundingKeywords(TypedDict, total=False):
    """The settings of :class:`Rounding` as Python keywords."""

    widths: tuple[int, ...] | int | str | None
    scale_group: int | None
    zero_points: bool
    embedding_bits: int | None
