"""What the user asks for, validated once; command line flags and Python arguments are views of it."""

import difflib
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.presets import PRESETS, Preset

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Form = Literal["plain", "pivoted"]
DTYPES: tuple[str, ...] = get_args(DtypeName)
TARGETS = ("ratio", "max_parameters", "max_bytes", "max_flops", "max_perplexity_increase", "plan")
PLANNER_ONLY = (*TARGETS[1:-1], "gradients", "across_roles", "across_depth", "rank_multiple")


class Recipe(BaseModel):
    """The settings of one compression.

    Attributes:
        ratio: Fraction of the parameters to remove from the compressible projections, between 0 and 1.
        max_parameters: Instead of ``ratio``: parameters the whole model may have.
        max_bytes: Instead of ``ratio``: bytes the weights of the whole model may take.
        max_flops: Instead of ``ratio``: floating point operations per token that projections and head may take.
        max_perplexity_increase: Instead of ``ratio``: by what fraction the perplexity may rise, e.g. 0.05.
        plan: Instead of ``ratio``: a plan in a file.
        method: Name of a preset.
        gradients: Whether the planner weighs errors with loss gradients; without, it measures one number per
            projection, which needs no backward pass and predicts worse.
        roles: Roles to compress; the others stay dense, and the ratio is of these alone. None: all.
        across_roles: Whether the planner may let projections that read one input share.
        across_depth: Whether the planner may let projections of neighbouring blocks share.
        rank_multiple: The planner's ranks are multiples of this.
        calibration: Source of the calibration text, or several, ``A + B``.
        windows: Number of calibration windows; fewer are used (and reported) where the text is shorter.
        length: Tokens per window; None: 2048, or the model's limit where that is smaller.
        seed: Seed of everything random.
        group_size: Layers per shared basis; None: the method's own.
        share: Roles that share, or the name of a family whose table is used; None: the model's own family.
        form: How factors are stored: "plain", as published, or "pivoted", which reaches a higher rank in the same size;
            "auto": pivoted where the planner decides, else plain.
        refit: Whether the coefficients are refitted on the compressed flow: "auto": as the method prescribes, and
            anchored only where the text suffices; "always": as Basis Sharing does from ratio 0.4 on; "anchored", as
            the planner's methods do: block by block, towards the original's states, where that helps; "never".
        refine: Minutes that training the blocks towards the original's states may take, about; None: no training.
        dtype: Dtype the model is loaded, factorized and stored in; "auto": the checkpoint's own.
        calibration_dtype: Dtype of the calibration forward pass; "auto": bf16 where the hardware is faster in it.
        evaluate: Texts on which perplexity is measured before and after.
        evaluation_windows: Number of windows per text; None: all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float | None = None
    max_parameters: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    max_flops: int | None = Field(default=None, ge=1)
    max_perplexity_increase: float | None = Field(default=None, gt=0)
    plan: Path | None = None
    method: str = "auto"
    gradients: bool = True
    roles: tuple[str, ...] | None = Field(default=None, min_length=1)
    across_roles: bool = True
    across_depth: bool = True
    rank_multiple: int = Field(default=1, ge=1)
    calibration: str = "python-docs"
    windows: int = Field(default=256, ge=1)
    length: int | None = Field(default=None, ge=2)
    seed: int = Field(default=2023, ge=0)
    group_size: int | None = Field(default=None, ge=1)
    share: tuple[str, ...] | None = None
    form: Literal["auto", "plain", "pivoted"] = "auto"
    refit: Literal["auto", "always", "anchored", "never"] = "auto"
    refine: float | None = Field(default=None, gt=0)
    dtype: DtypeName = "auto"
    calibration_dtype: DtypeName = "auto"
    evaluate: tuple[str, ...] = ()
    evaluation_windows: int | None = Field(default=None, ge=1)

    @field_validator("ratio", mode="before")
    @classmethod
    def _ratio_between_zero_and_one(cls, value: object) -> float | None:
        if value is None:
            return None
        try:
            ratio = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"ratio {value!r} is not a number: give the fraction of parameters to remove, e.g. 0.2."
            ) from None
        if not 0 < ratio < 1:
            raise ValueError(
                f"ratio {ratio:g} is out of range: give the fraction of parameters to remove, above 0 and below 1."
            )
        return ratio

    @field_validator("max_parameters", "max_bytes", "max_flops", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        return amount(value)

    @field_validator("max_perplexity_increase", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        return fraction(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both given: choose one target.")
        if not given:
            raise ValueError(
                "the target is missing: give the ratio of parameters to remove, e.g. --ratio 0.2, or one of "
                f"{', '.join(_flag(name) for name in TARGETS[1:])}."
            )
        if self.plan is not None and self.roles is not None:
            raise ValueError("--roles has no meaning for a plan, which names its projections: leave it out.")
        mine = {name: getattr(self, name) for name in PLANNER_ONLY}
        others = {name: getattr(self, name) for name in ("group_size", "share")}
        if self.preset.planned:
            wrong = next((name for name, value in others.items() if value is not None), None)
        else:
            fields = type(self).model_fields
            wrong = next((name for name, value in mine.items() if value != fields[name].default), None)
        if wrong is not None:
            other = "method basis-sharing" if self.preset.planned else "method auto"
            raise ValueError(f"{_flag(wrong)} has no meaning for method {self.method}: leave it out, or use {other}.")
        return self

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in PRESETS:
            near = difflib.get_close_matches(value, PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(PRESETS)}."
            raise ValueError(f"unknown method {value!r}: {hint}")
        return value

    @field_validator("share", "roles", mode="before")
    @classmethod
    def _split_roles(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def create(cls, **settings: Any) -> Self:
        """Validate settings.

        Raises:
            RecipeError: One sentence about the first setting that is wrong.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                unknown = str(first["loc"][0])
                raise RecipeError(f"unknown setting {unknown!r}: {_nearest(unknown)}") from None
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "value_error":
                raise RecipeError(first["msg"].removeprefix("Value error, ")) from None
            message = first["msg"][0].lower() + first["msg"][1:]
            raise RecipeError(f"setting {name!r} with value {first['input']!r}: {message}.") from None

    @classmethod
    def settings_in(cls, path: Path) -> dict[str, Any]:
        """Read settings from a YAML or JSON file, to be completed and passed to :meth:`create`.

        Raises:
            RecipeError: The file cannot be read or is not a mapping of setting names to values.
        """
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"the recipe {path} cannot be read ({error.strerror}): check the path.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"the recipe {path} is not valid YAML ({reason}).") from None
        if not isinstance(settings, dict):
            raise RecipeError(f"the recipe {path} is not a mapping: write lines such as `ratio: 0.2`.")
        unknown = [str(name) for name in settings if name not in cls.model_fields]
        if unknown:
            raise RecipeError(f"the recipe {path} has the unknown setting {unknown[0]!r}: {_nearest(unknown[0])}")
        return settings

    @property
    def preset(self) -> Preset:
        """The preset that ``method`` names."""
        return PRESETS[self.method]

    @property
    def exact_ratio(self) -> Fraction | None:
        """The ratio as the decimal number the user wrote, so that ranks do not depend on binary rounding."""
        return None if self.ratio is None else Fraction(str(self.ratio))

    @property
    def stored_form(self) -> Form:
        """How factors are stored where the method's own choice is asked for."""
        if self.form == "auto":
            return "pivoted" if self.preset.planned else "plain"
        return self.form

    @property
    def chosen_refit(self) -> Literal["never", "always", "anchored"]:
        """How the coefficients will be refitted; training, where it is asked for, takes the place of the method's."""
        if self.refit != "auto":
            return self.refit
        ratio = self.exact_ratio
        prescribed = self.preset.refit_from == 0 or (ratio is not None and ratio >= self.preset.refit_from)
        return self.preset.refit if prescribed and self.refine is None else "never"


def fraction(value: object) -> object:
    """Return a fraction that may be written as a percentage, ``"5%"``, as a number; anything but text as it is.

    Raises:
        ValueError: The text is neither a number nor a percentage.
    """
    if not isinstance(value, str):
        return value
    number = value.strip()
    try:
        return float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{value!r} is neither a fraction nor a percentage: write e.g. 0.05 or 5%.") from None


def amount(value: object) -> object:
    """Return an amount that may be written with a unit, ``"90M"`` or ``"1.5GiB"``, as a number.

    Raises:
        ValueError: The text is no amount.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *([kKMGT]?)(i?)B?", value.strip())
    if found is None:
        raise ValueError(f"{value!r} is not an amount: write a number such as 90000000, 90M, 1.5G or 512MiB.")
    power = " kMGT".index(found[2].replace("K", "k") or " ")
    return int(Fraction(found[1]) * (1024 if found[3] else 1000) ** power)


def _flag(setting: str) -> str:
    """Return how a setting is named on the command line."""
    names = {"gradients": "no-gradients", "across_roles": "no-joint-roles", "across_depth": "no-sharing"}
    return "--" + names.get(setting, setting.replace("_", "-"))


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(Recipe.model_fields)}."
