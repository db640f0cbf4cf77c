"""The settings of a recovery, a training of a compressed model."""

from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import Field, model_validator

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.calibration import TEXTS
from basis_sharing.recipe.settings import Option, Settings

RECOVERIES: dict[str, dict[str, object]] = {
    "distill": {"train": "factors", "loss": "distillation", "minutes": 30.0, "learning_rate": 3e-4},
    "next-token": {"train": "factors", "loss": "next-token", "minutes": 30.0, "learning_rate": 3e-4},
    "paper": {"train": "lora", "loss": "next-token", "epochs": 2.0, "learning_rate": 1e-4},
}
DEFAULT_RECOVERY = "distill"


class RecoverySettings(Settings):
    """The settings of one recovery; a preset supplies those that are not given.

    Attributes:
        train: What is trained: the factors and norms, or LoRA on the coefficients, which is merged at the end.
        loss: Target of the training: the original's next-token distributions, or the next tokens of the text.
        lora_rank: Rank of LoRA.
        lora_alpha: Scale of LoRA.
    """

    preset: Annotated[
        str,
        Option(
            "distill: the factors learn the original's predictions; next-token: they learn the text; paper: LoRA on "
            "the coefficients as in Basis Sharing (rank 8, alpha 32, rate 1e-4, two epochs of the text), merged",
            metavar="NAME",
        ),
    ] = DEFAULT_RECOVERY
    minutes: Annotated[
        float | None,
        Option("About how long the training may take", metavar="N", default="30; paper: see --epochs"),
    ] = Field(default=None, gt=0)
    epochs: Annotated[
        float | None, Option("Passes over the text, instead of --minutes", metavar="N", default="none")
    ] = Field(default=None, gt=0)
    learning_rate: Annotated[
        float,
        Option(
            "Step of the optimizer to begin with: relative to the size of each parameter for factors, absolute for "
            "LoRA",
            metavar="R",
            default="the preset's",
        ),
    ] = Field(gt=0)
    calibration: Annotated[str, Option(f"Text to learn from: {TEXTS}", metavar="TEXT")] = "python-docs"
    windows: Annotated[int | None, Option("Number of windows of text", metavar="N", default="all")] = Field(
        default=None, ge=2
    )
    length: Annotated[int, Option("Tokens per window", metavar="N")] = Field(default=1024, ge=2)
    seed: Annotated[int, Option("Seed of everything random", metavar="N")] = Field(default=2023, ge=0)
    train: Literal["factors", "lora"]
    loss: Literal["distillation", "next-token"]
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=32, gt=0)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError("give either the minutes or the epochs a recovery may take, not both.")
        return self

    @classmethod
    def create(cls, preset: str = DEFAULT_RECOVERY, **settings: Any) -> Self:
        """Return validated settings, completed from a preset; None counts as not given.

        Raises:
            RecipeError: A setting is invalid; the message is one sentence about the first one.
        """
        if preset not in RECOVERIES:
            raise RecipeError(f"unknown preset {preset!r}: choose from {', '.join(RECOVERIES)}.")
        given = {name: value for name, value in settings.items() if value is not None}
        completed = dict(RECOVERIES[preset])
        if "minutes" in given or "epochs" in given:
            completed.pop("minutes", None)
            completed.pop("epochs", None)
        return super().create(preset=preset, **{**completed, **given})


class RecoveryKeywords(TypedDict, total=False):
    """The settings of :class:`RecoverySettings` as Python keywords; None: the preset's."""

    preset: str
    minutes: float | None
    epochs: float | None
    learning_rate: float | None
    calibration: str | None
    windows: int | None
    length: int | None
    seed: int | None
    train: Literal["factors", "lora"] | None
    loss: Literal["distillation", "next-token"] | None
    lora_rank: int | None
    lora_alpha: float | None
