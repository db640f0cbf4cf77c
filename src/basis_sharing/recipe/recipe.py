"""The recipe: all settings of one compression, validated once.

It is composed of parts, and every stage of a run takes the part that it needs. For users it is flat: a YAML file, the
Python keywords and the flags use the same names.
"""

from typing import Any, Literal, Self

from pydantic import model_validator

from basis_sharing.recipe.calibration import Calibration, CalibrationKeywords
from basis_sharing.recipe.evaluation import Evaluation, EvaluationKeywords
from basis_sharing.recipe.model import ModelKeywords, ModelSettings
from basis_sharing.recipe.planning import PLANNER, PUBLISHED, Planning, PlanningKeywords
from basis_sharing.recipe.repair import Repair, RepairKeywords
from basis_sharing.recipe.rounding import ROUNDING, WIDTHS
from basis_sharing.recipe.settings import flag_of
from basis_sharing.recipe.speed import SPEED, Speed, SpeedKeywords
from basis_sharing.recipe.target import LIMITS, TIME_LIMITS, Target, TargetKeywords

_PLANNER_ONLY = (
    *LIMITS,
    "max_perplexity_increase",
    *TIME_LIMITS,
    *Speed.in_panel(SPEED),
    *Planning.in_panel(PLANNER),
)
_SAME: dict[str, tuple[object, ...]] = {"rank_multiple": (1,)}
"""Values of the planner's settings that say what published methods do anyway."""
_ROUNDING = ("bits", *Planning.in_panel(ROUNDING))
"""The settings that have no meaning for methods with factors of one size."""
EXPERT_TREATMENTS = ("experts", "expert-factors")
"""The treatments of the experts of mixtures; what they lose is priced with gradients."""
_PUBLISHED_ONLY = Planning.in_panel(PUBLISHED)


class RecipeKeywords(
    TargetKeywords,
    SpeedKeywords,
    PlanningKeywords,
    ModelKeywords,
    CalibrationKeywords,
    RepairKeywords,
    EvaluationKeywords,
    total=False,
):
    """All settings of a :class:`Recipe` as Python keywords."""


class Recipe(Evaluation, Repair, Calibration, ModelSettings, Planning, Speed, Target):
    """The settings of one compression.

    Example:
        >>> import basis_sharing
        >>> recipe = basis_sharing.Recipe.create(ratio=0.2, method="svd-llm", windows=16)
        >>> basis_sharing.estimate("./llama", recipe).windows
        16
    """

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.plan is not None and self.roles is not None:
            raise ValueError("--roles has no meaning for a plan, which names its projections: leave it out.")
        if self.max_latency is not None and self.phase is None:
            raise ValueError(
                "--max-latency needs its phase: add --phase prefill (a prompt of --tokens) or --phase decode (a token "
                "at --batch)."
            )
        fields, options = type(self).model_fields, type(self).options()
        rounding = self.preset.rounding
        if rounding is not None:
            self._is_rounding()
        foreign = _PUBLISHED_ONLY if self.preset.planned else _PLANNER_ONLY
        if not self.preset.planned and rounding is None:
            foreign = (*foreign, *_ROUNDING)
        wrong = next(
            (name for name in foreign if getattr(self, name) not in (fields[name].default, *_SAME.get(name, ()))), None
        )
        if wrong is not None:
            other = "method basis-sharing" if self.preset.planned else "method auto"
            flag = flag_of(wrong, options[wrong])
            raise ValueError(f"{flag} has no meaning for method {self.method}: leave it out, or use {other}.")
        self._rounds_something()
        return self

    def _rounds_something(self) -> None:
        """Check that settings of rounding come with bits among the treatments."""
        fields, options = type(self).model_fields, type(self).options()
        idle = "bits" not in self.offered_treatments
        wrong = next((n for n in Planning.in_panel(ROUNDING) if idle and getattr(self, n) != fields[n].default), None)
        if wrong is not None:
            raise ValueError(
                f"{flag_of(wrong, options[wrong])} has no meaning where nothing is rounded: add --bits, --max-bytes or "
                "--treatments factors,bits, or leave it out."
            )

    def _is_rounding(self) -> None:
        """Check the settings of a method that rounds all weights to the same number of bits."""
        if self.bits is None or self.bits not in WIDTHS:
            raise ValueError(
                f"method {self.method} needs a whole number of bits, from {WIDTHS[0]} to {WIDTHS[-1]}, and no other "
                "target: e.g. --bits 4."
            )
        if self.widths is not None:
            raise ValueError(f"--widths has no meaning for method {self.method}: leave it out; --bits is the width.")

    @property
    def offered_treatments(self) -> tuple[str, ...]:
        """The treatments that projections and experts may get: rounding as well where bytes or bits are limited."""
        if self.preset.rounding is not None:
            return ("bits",)
        if self.treatments is not None or not self.preset.planned:
            return self.treatments or ("factors",)
        rounding = ("bits",) if self.limits_bytes else ()
        return ("factors", *rounding, *(EXPERT_TREATMENTS if self.gradients else ()))

    @property
    def compresses_experts(self) -> bool:
        """Whether the experts of mixtures are among what is compressed: what they lose is priced with gradients."""
        return self.preset.planned and self.gradients and not set(EXPERT_TREATMENTS).isdisjoint(self.offered_treatments)

    @property
    def chosen_refit(self) -> Literal["never", "always", "anchored"]:
        """How the coefficients are refitted; with ``auto``, block training replaces the method's refit."""
        if self.refit != "auto":
            return self.refit
        ratio = self.exact_ratio
        prescribed = self.preset.refit_from == 0 or (ratio is not None and ratio >= self.preset.refit_from)
        return self.preset.refit if prescribed and self.refine is None else "never"

    @property
    def reads_text(self) -> bool:
        """Whether the method uses a calibration text."""
        return self.weighting != "none" or self.chosen_refit != "never" or self.refine is not None


def as_recipe(recipe: Recipe | float | str | None, settings: RecipeKeywords | dict[str, Any]) -> Recipe:
    """Return the recipe from the arguments of a verb.

    Args:
        recipe: A recipe, or the ratio, or None.
        settings: Settings that complete it, or replace those of a recipe.

    Raises:
        RecipeError: A setting is invalid; the message is one sentence about the first one.
    """
    if isinstance(recipe, Recipe):
        given = {name: getattr(recipe, name) for name in recipe.model_fields_set}
        return Recipe.create(**{**given, **settings}) if settings else recipe
    return Recipe.create(**({} if recipe is None else {"ratio": recipe}), **settings)
