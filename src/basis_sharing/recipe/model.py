"""The model part of a recipe: its dtype, and the roles that are compressed."""

from typing import Annotated, Literal, TypedDict, get_args

from pydantic import Field, field_validator

from basis_sharing.recipe.settings import Option, Settings

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(DtypeName)


class ModelSettings(Settings):
    """The dtype of the model, and the roles that are compressed."""

    roles: Annotated[
        tuple[str, ...] | None,
        Option(
            "Compress the projections of these roles only, e.g. gate,up,down; the others stay dense, and the ratio is "
            "of these alone",
            metavar="ROLES",
            default="all",
        ),
    ] = Field(default=None, min_length=1)
    dtype: Annotated[
        DtypeName,
        Option(
            f"Dtype the model is loaded, factorized and stored in, one of {', '.join(DTYPES)}; auto: as in the "
            "checkpoint",
            metavar="DTYPE",
        ),
    ] = "auto"

    @property
    def compresses_experts(self) -> bool:
        """Whether the experts of mixtures are among what is compressed."""
        return False

    @field_validator("roles", mode="before")
    @classmethod
    def _listed_roles(cls, value: object) -> object:
        return names_in(value)


def names_in(value: object) -> object:
    """Return names that may be written as one text with commas as a tuple; other types unchanged."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class ModelKeywords(TypedDict, total=False):
    """The settings of :class:`ModelSettings` as Python keywords; names also as text with commas."""

    roles: tuple[str, ...] | str | None
    dtype: DtypeName
