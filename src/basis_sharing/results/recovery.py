"""What was asked of a recovery, and what it did."""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from basis_sharing.errors import RecipeError
from basis_sharing.results.base import Frozen
from basis_sharing.results.measures import Perplexity

PRESETS: dict[str, dict[str, object]] = {
    "distill": {"train": "factors", "loss": "distillation", "minutes": 30.0, "learning_rate": 3e-4},
    "next-token": {"train": "factors", "loss": "next-token", "minutes": 30.0, "learning_rate": 3e-4},
    "paper": {"train": "lora", "loss": "next-token", "epochs": 2.0, "learning_rate": 1e-4},
}
DEFAULT_PRESET = "distill"


class RecoverySettings(Frozen):
    """The settings of one recovery.

    Attributes:
        preset: Name of the preset that the others are taken from where they are not given: ``distill`` trains the
            factors by distillation from the original, ``next-token`` by the text alone, ``paper`` is the setting of
            Basis Sharing (LoRA of rank 8, alpha 32, on the coefficients, two epochs by the text alone).
        train: What is trained: the factors and norms, or LoRA on the coefficients, which is then merged into them.
        loss: What for: the original's next-token distributions, or the text.
        minutes: How long it may take, about; None: see ``epochs``.
        epochs: Passes over the text; None: see ``minutes``.
        learning_rate: Step of AdamW to begin with; relative to the size of each parameter for factors, absolute for
            LoRA.
        lora_rank: Rank of LoRA.
        lora_alpha: Its scale.
        calibration: Source of the text.
        windows: Number of windows; None: all there are.
        length: Tokens per window.
        seed: Seed of the order of the windows.
    """

    preset: str = DEFAULT_PRESET
    train: Literal["factors", "lora"]
    loss: Literal["distillation", "next-token"]
    minutes: float | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float = Field(gt=0)
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=32, gt=0)
    calibration: str = "python-docs"
    windows: int | None = Field(default=None, ge=2)
    length: int = Field(default=1024, ge=2)
    seed: int = Field(default=2023, ge=0)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError("give either the minutes or the epochs a recovery may take, not both.")
        return self

    @classmethod
    def create(cls, preset: str = DEFAULT_PRESET, **settings: object) -> Self:
        """Complete settings from a preset and validate them; those that are None count as not given.

        Raises:
            RecipeError: One sentence about the first setting that is wrong.
        """
        if preset not in PRESETS:
            raise RecipeError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}.")
        given = {name: value for name, value in settings.items() if value is not None}
        preset_settings = dict(PRESETS[preset])
        if "minutes" in given or "epochs" in given:
            preset_settings.pop("minutes", None)
            preset_settings.pop("epochs", None)
        try:
            return cls.model_validate({"preset": preset, **preset_settings, **given})
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":
                raise RecipeError(first["msg"].removeprefix("Value error, ")) from None
            name = ".".join(map(str, first["loc"]))
            message = first["msg"][0].lower() + first["msg"][1:]
            raise RecipeError(f"setting {name!r} with value {first['input']!r}: {message}.") from None


class RecoveryReport(Frozen):
    """What a recovery did.

    Attributes:
        settings: What was asked for.
        fingerprint: Fingerprint of the token windows.
        windows: Number of windows to learn from.
        held_out: Number of windows to judge by.
        steps: Steps of the optimizer, one window each.
        tokens: Tokens that were learned from, repeated ones counted again.
        trained_parameters: Numbers that could change.
        loss_before: Loss on the windows to judge by before, nats per token: KL divergence from the original for
            ``distillation``, else negative log-likelihood.
        loss_after: That of what was kept.
        slowed: How often the rate was cut to a third, because the loss on the windows to judge by had grown.
        diverged: Whether the training diverged, was stopped, and the best state before was kept.
        perplexity_before: Perplexity of the compressed model on the requested texts.
        perplexity_after: That of the recovered model on the same windows.
    """

    settings: RecoverySettings
    fingerprint: str
    windows: int
    held_out: int
    steps: int
    tokens: int
    trained_parameters: int
    loss_before: float
    loss_after: float
    slowed: int = 0
    diverged: bool
    perplexity_before: tuple[Perplexity, ...]
    perplexity_after: tuple[Perplexity, ...]
