"""The target part of a recipe: the required size, cost or quality of the compressed model."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Self, TypedDict

from pydantic import BeforeValidator, Field, field_validator, model_validator

from basis_sharing.recipe.amounts import amount, duration, fraction, multiple
from basis_sharing.recipe.settings import Option, Settings

_PANEL = "Target"
Limit = Annotated[int | None, BeforeValidator(amount)]
"""A limit on a cost of the whole model, also as text with a unit; several may be given at once."""


class Target(Settings):
    """One target, or several limits on costs that all have to be held; limits on time go with any of them."""

    ratio: Annotated[
        float | None,
        Option(
            "Fraction of the parameters to remove from the compressible projections, e.g. 0.3",
            metavar="R",
            panel=_PANEL,
            text=True,
        ),
    ] = None
    max_parameters: Annotated[
        Limit, Option("Parameters the whole model may have, e.g. 100M", metavar="N", panel=_PANEL, text=True)
    ] = Field(default=None, ge=1)
    max_bytes: Annotated[
        Limit,
        Option("Bytes the weights of the whole model may take, e.g. 1.5GiB", metavar="N", panel=_PANEL, text=True),
    ] = Field(default=None, ge=1)
    max_flops: Annotated[
        Limit,
        Option(
            "Floating point operations per token for projections and output head, e.g. 180M",
            metavar="N",
            panel=_PANEL,
            text=True,
        ),
    ] = Field(default=None, ge=1)
    bits: Annotated[
        float | None,
        Option(
            "Bits per weight of the compressible projections, scales and indices counted, e.g. 4.25; for rtn and gptq "
            "the bits of every weight, e.g. 4",
            metavar="B",
            panel=_PANEL,
            text=True,
        ),
    ] = None
    max_perplexity_increase: Annotated[
        float | None,
        Option(
            "How much the perplexity may rise, e.g. 5%; one plan is measured on the first --evaluate text (or on "
            "python-docs:heldout) to scale the prediction",
            metavar="P",
            panel=_PANEL,
            text=True,
        ),
    ] = Field(default=None, gt=0)
    min_speedup: Annotated[
        float | None,
        Option(
            "Speed the model must have, as a multiple of the original's, e.g. 1.3; alone or with any other limit",
            metavar="X",
            panel=_PANEL,
            text=True,
        ),
    ] = None
    max_latency: Annotated[
        float | None,
        Option(
            "Time that reading a prompt or decoding a token (--phase) may take, e.g. 25ms; alone or with any other "
            "limit",
            metavar="T",
            panel=_PANEL,
            text=True,
        ),
    ] = Field(default=None, gt=0)
    plan: Annotated[
        Path | None,
        Option("Execute this plan, from `basis-sharing plan`, also one edited by hand", metavar="FILE", panel=_PANEL),
    ] = None

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

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_below_sixteen(cls, value: object) -> float | None:
        if value is None:
            return None
        try:
            bits = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(f"bits {value!r} is not a number: give the bits per weight, e.g. 4.25.") from None
        if not _FEWEST_BITS <= bits < _MOST_BITS:
            raise ValueError(
                f"bits {bits:g} is out of range: give the bits per weight, from {_FEWEST_BITS} to below {_MOST_BITS}."
            )
        return bits

    @field_validator("max_perplexity_increase", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        return fraction(value)

    @field_validator("min_speedup", mode="before")
    @classmethod
    def _speedup_above_one(cls, value: object) -> object:
        speedup = multiple(value)
        if isinstance(speedup, (int, float)) and not 1 <= speedup <= _MOST_SPEEDUP:
            raise ValueError(
                f"min_speedup {speedup:g} is out of range: give the speed as a multiple of the original's, from 1 "
                f"(not slower) to {_MOST_SPEEDUP}."
            )
        return speedup

    @field_validator("max_latency", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        return duration(value)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if self.plan is not None and len(given) > 1:
            raise ValueError(f"{given[0]} and plan are both given: choose one target; a plan is carried out as it is.")
        others = [name for name in given if name not in TIME_LIMITS]
        combined = (*LIMITS, "bits")
        if len(others) > 1 and not set(others) <= set(combined):
            raise ValueError(
                f"{others[0]} and {others[1]} are both given: choose one target; only {', '.join(combined)} can be "
                "combined."
            )
        if not given:
            flags = ", ".join("--" + name.replace("_", "-") for name in TARGETS[1:])
            raise ValueError(
                f"the target is missing: give the ratio of parameters to remove, e.g. --ratio 0.2, or one of {flags}."
            )
        return self

    @property
    def exact_ratio(self) -> Fraction | None:
        """The ratio as the decimal number that the user gave, so that ranks do not depend on binary rounding."""
        return None if self.ratio is None else Fraction(str(self.ratio))

    @property
    def limits_time(self) -> bool:
        """Whether the time of the compressed model is limited."""
        return self.min_speedup is not None or self.max_latency is not None

    @property
    def limits_bytes(self) -> bool:
        """Whether the bytes of the compressed model, or of its projections, are limited."""
        return self.max_bytes is not None or self.bits is not None

    @property
    def limits(self) -> dict[str, int]:
        """The limits on costs that are set, by name."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}


_MOST_SPEEDUP = 10
_FEWEST_BITS, _MOST_BITS = 1, 16
TIME_LIMITS = ("min_speedup", "max_latency")
"""The settings that are limits on time, which can be given beside any other target."""
LIMITS = tuple(name for name, field in Target.model_fields.items() if BeforeValidator(amount) in field.metadata)
"""The settings that are limits on a cost."""
TARGETS = tuple(Target.model_fields)


class TargetKeywords(TypedDict, total=False):
    """The settings of :class:`Target` as Python keywords; amounts and fractions also as text."""

    ratio: float | str | None
    max_parameters: int | str | None
    max_bytes: int | str | None
    max_flops: int | str | None
    bits: float | str | None
    max_perplexity_increase: float | str | None
    min_speedup: float | str | None
    max_latency: float | str | None
    plan: Path | str | None
