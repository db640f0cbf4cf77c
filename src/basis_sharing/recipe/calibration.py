"""The calibration part of a recipe: the text on which statistics are collected."""

from typing import Annotated, TypedDict

from pydantic import Field

from basis_sharing.recipe.model import DtypeName
from basis_sharing.recipe.settings import Option, Settings

TEXTS = (
    "python-docs (on every machine), wikitext2, wikitext2:FILE, c4:FILE, self, a file (.txt, .jsonl, .csv, .parquet; "
    "compressed or not), a folder, - for standard input, hub:NAME@SPLIT, each as PLACE#COLUMN for one column and as "
    "chat:PLACE for conversations, or token windows (.npz, .safetensors); several, in equal parts, as 'A + B'"
)


class Calibration(Settings):
    """The calibration text and how it is read."""

    calibration: Annotated[str, Option(f"Calibration text: {TEXTS}", metavar="TEXT")] = "python-docs"
    windows: Annotated[
        int,
        Option(
            "Number of calibration windows; more is better and slower; fewer are used, and reported, where the text is "
            "shorter",
            metavar="N",
        ),
    ] = Field(default=256, ge=1)
    length: Annotated[
        int | None,
        Option("Tokens per window", metavar="N", default="2048, or the model's limit where that is smaller"),
    ] = Field(default=None, ge=2)
    seed: Annotated[int, Option("Seed of everything random", metavar="N")] = Field(default=2023, ge=0)
    calibration_dtype: Annotated[
        DtypeName,
        Option("Dtype of the calibration pass; auto: bf16 where the hardware is faster in it", metavar="DTYPE"),
    ] = "auto"


class CalibrationKeywords(TypedDict, total=False):
    """The settings of :class:`Calibration` as Python keywords."""

    calibration: str
    windows: int
    length: int | None
    seed: int
    calibration_dtype: DtypeName
