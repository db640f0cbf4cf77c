"""The planning part of a recipe: the method, and the options it may choose from."""

import difflib
from typing import Annotated, Literal

from pydantic import Field, field_validator

from basis_sharing.recipe.model import names_in
from basis_sharing.recipe.presets import PRESETS, Preset
from basis_sharing.recipe.rounding import Rounding, RoundingKeywords
from basis_sharing.recipe.settings import Option

Form = Literal["plain", "pivoted"]
FormSetting = Literal["auto", "plain", "pivoted"]
RankMultiple = int | Literal["auto"]

PLANNER = "Planner (method auto)"
PUBLISHED = "Published methods"
"""Headings of the settings that have a meaning for the method ``auto``, and for the published ones, only."""


class Planning(Rounding):
    """How groups, ranks and other options are chosen."""

    method: Annotated[str, Option(f"One of {', '.join(PRESETS)}", metavar="NAME")] = "auto"
    gradients: Annotated[
        bool,
        Option(
            "Plan without a backward pass: quicker, coarser predictions, usually a worse result",
            flag="--no-gradients",
            panel=PLANNER,
        ),
    ] = True
    across_depth: Annotated[bool, Option("Never share a basis between layers", flag="--no-sharing", panel=PLANNER)] = (
        True
    )
    across_roles: Annotated[
        bool,
        Option(
            "Never share a basis between roles that read one input (q, k, v; gate, up)",
            flag="--no-joint-roles",
            panel=PLANNER,
        ),
    ] = True
    rank_multiple: Annotated[
        RankMultiple,
        Option(
            "Ranks are multiples of this, e.g. 8, 16 or 64; auto: of what is fast on the device the model is made for",
            metavar="N",
            panel=PLANNER,
            text=True,
        ),
    ] = "auto"
    treatments: Annotated[
        tuple[str, ...] | None,
        Option(
            "What projections may be turned into, separated by commas",
            metavar="NAMES",
            default="factors; with bits where bytes or bits are limited; for mixtures experts,expert-factors",
            panel=PLANNER,
        ),
    ] = Field(default=None, min_length=1)
    group_size: Annotated[
        int | None,
        Option("Layers that share a basis", metavar="N", default="2 for basis-sharing, else 1", panel=PUBLISHED),
    ] = Field(default=None, ge=1)
    share: Annotated[
        tuple[str, ...] | None,
        Option(
            "Roles that share, e.g. q,gate,up, or a family whose table is used, e.g. mistral",
            metavar="ROLES",
            default="the table of the model's family",
            panel=PUBLISHED,
        ),
    ] = None
    form: Annotated[
        FormSetting,
        Option(
            "How factors are stored: plain, as published, or pivoted, which reaches a higher rank in the same size",
            metavar="FORM",
            default="pivoted for auto, else plain",
        ),
    ] = "auto"

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in PRESETS:
            near = difflib.get_close_matches(value, PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(PRESETS)}."
            raise ValueError(f"unknown method {value!r}: {hint}")
        return value

    @field_validator("rank_multiple", mode="before")
    @classmethod
    def _whole_number_or_auto(cls, value: object) -> object:
        if value == "auto":
            return value
        number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"rank_multiple {value!r} is no multiple: give auto, or a whole number from 1, e.g. 16.")
        return number

    @field_validator("share", "treatments", mode="before")
    @classmethod
    def _listed_names(cls, value: object) -> object:
        return names_in(value)

    @property
    def preset(self) -> Preset:
        """The preset that ``method`` names."""
        return PRESETS[self.method]

    @property
    def offered_treatments(self) -> tuple[str, ...]:
        """The treatments that projections may get."""
        return self.treatments or ("factors",)

    @property
    def weighting(self) -> str:
        """Name of the weighting of errors: the method's, or ``sensitivity`` for a plan without gradients."""
        weighting = self.preset.weighting
        return "sensitivity" if weighting == "loss" and not self.gradients else weighting

    @property
    def stored_form(self) -> Form:
        """The form in which factors are stored; ``auto`` is resolved to the method's form."""
        if self.form == "auto":
            return "pivoted" if self.preset.planned else "plain"
        return self.form


class PlanningKeywords(RoundingKeywords, total=False):
    """The settings of :class:`Planning` as Python keywords; names also as text with commas."""

    method: str
    gradients: bool
    across_depth: bool
    across_roles: bool
    rank_multiple: RankMultiple | str
    treatments: tuple[str, ...] | str | None
    group_size: int | None
    share: tuple[str, ...] | str | None
    form: FormSetting
