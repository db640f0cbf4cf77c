"""What the user asks for, validated once; command line flags and Python arguments are views of it."""

import difflib
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from basis_sharing.errors import RecipeError
from basis_sharing.presets import PRESETS, Preset

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Form = Literal["plain", "pivoted"]
DTYPES: tuple[str, ...] = get_args(DtypeName)


class Recipe(BaseModel):
    """The settings of one compression.

    Attributes:
        ratio: Fraction of the parameters to remove from the compressible projections, between 0 and 1.
        method: Name of a preset.
        calibration: Source of the calibration text.
        windows: Number of calibration windows; fewer are used (and reported) where the text is shorter.
        length: Tokens per window; None: 2048, or the model's limit where that is smaller.
        seed: Seed of everything random.
        group_size: Layers per shared basis; None: the method's own.
        share: Roles that share, or the name of a family whose table is used; None: the model's own family.
        form: How factors are stored: "plain", as published, or "pivoted", which reaches a higher rank in the same size.
        refit: Whether the coefficients are refitted on the compressed flow; "auto": as the method prescribes.
        dtype: Dtype the model is loaded, factorized and stored in; "auto": the checkpoint's own.
        calibration_dtype: Dtype of the calibration forward pass; "auto": bf16 where the hardware is faster in it.
        evaluate: Texts on which perplexity is measured before and after.
        evaluation_windows: Number of windows per text; None: all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float
    method: str = "basis-sharing"
    calibration: str = "python-docs"
    windows: int = Field(default=256, ge=1)
    length: int | None = Field(default=None, ge=2)
    seed: int = Field(default=2023, ge=0)
    group_size: int | None = Field(default=None, ge=1)
    share: tuple[str, ...] | None = None
    form: Form = "plain"
    refit: Literal["auto", "always", "never"] = "auto"
    dtype: DtypeName = "auto"
    calibration_dtype: DtypeName = "auto"
    evaluate: tuple[str, ...] = ()
    evaluation_windows: int | None = Field(default=None, ge=1)

    @field_validator("ratio", mode="before")
    @classmethod
    def _ratio_between_zero_and_one(cls, value: object) -> float:
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

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in PRESETS:
            near = difflib.get_close_matches(value, PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(PRESETS)}."
            raise ValueError(f"unknown method {value!r}: {hint}")
        return value

    @field_validator("share", mode="before")
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
    def exact_ratio(self) -> Fraction:
        """The ratio as the decimal number the user wrote, so that ranks do not depend on binary rounding."""
        return Fraction(str(self.ratio))

    @property
    def refits(self) -> bool:
        """Whether the coefficients will be refitted."""
        threshold = self.preset.refit_from
        return self.refit == "always" or (
            self.refit == "auto" and threshold is not None and self.exact_ratio >= threshold
        )


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(Recipe.model_fields)}."
