"""The speed part of a recipe: the machine a model is made for, and what it does there."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypedDict

from pydantic import Field, model_validator

from basis_sharing.recipe.settings import Option, Settings

SPEED = "Speed"
"""Heading of the settings that say where and how the compressed model will run."""

Phase = Literal["prefill", "decode", "both"]
RunsOn = Literal["auto", "cpu", "cuda", "mps"]


class Speed(Settings):
    """Where the compressed model will run, and what it will do there."""

    runs_on: Annotated[
        RunsOn,
        Option(
            "Device the model is made for: auto (this machine's), cpu, cuda or mps",
            metavar="DEVICE",
            panel=SPEED,
            name="--for",
        ),
    ] = "auto"
    phase: Annotated[
        Phase | None,
        Option(
            "What a limit on time is for: prefill (reading a prompt), decode (one more token), or both",
            metavar="PHASE",
            default="both",
            panel=SPEED,
        ),
    ] = None
    batch: Annotated[
        int | None,
        Option("Sequences that are decoded at once", metavar="N", default="1", panel=SPEED),
    ] = Field(default=None, ge=1)
    tokens: Annotated[
        int | None,
        Option(
            "Tokens of a prompt",
            metavar="N",
            default="256 on a CPU, else 2048",
            panel=SPEED,
        ),
    ] = Field(default=None, ge=1)
    times: Annotated[
        Path | None,
        Option(
            "File of measured times, read and written",
            metavar="FILE",
            default="one for this machine in the user's cache folder",
            panel=SPEED,
        ),
    ] = None

    @model_validator(mode="after")
    def _phase_has_its_numbers(self) -> Self:
        if self.batch is not None and self.phase == "prefill":
            raise ValueError("--batch belongs to decode, but --phase is prefill: leave it out, or give --phase both.")
        return self


class SpeedKeywords(TypedDict, total=False):
    """The settings of :class:`Speed` as Python keywords."""

    runs_on: RunsOn
    phase: Phase | None
    batch: int | None
    tokens: int | None
    times: Path | str | None
