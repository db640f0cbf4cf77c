"""The calibration text of a run: its token windows, and the dtype of the calibration pass."""

from dataclasses import dataclass
from typing import Protocol

import torch

from basis_sharing.calibration.windows import TokenWindows, calibration_windows, window_length
from basis_sharing.models.families import needs_bos
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import dtype_name, named_dtype
from basis_sharing.recipe.calibration import Calibration
from basis_sharing.run.machine import default_dtype
from basis_sharing.run.run import Run


@dataclass(frozen=True)
class CalibrationText:
    """Token windows to calibrate on, and the dtype to use.

    Attributes:
        windows: The windows and their source.
        dtype: Dtype of the calibration pass.
    """

    windows: TokenWindows
    dtype: torch.dtype

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids, shape ``[windows, length]``."""
        return self.windows.input_ids

    def about(self, decoder: Decoder) -> dict[str, object]:
        """Return the settings that the statistics of a structure depend on besides the model, for the cache."""
        return {
            "text": self.windows.fingerprint,
            "calibration_dtype": dtype_name(self.dtype),
            "projections": [part.name for part in decoder.parts],
        }


class WindowSettings(Protocol):
    """Settings that name token windows to calibrate or train on."""

    @property
    def calibration(self) -> str:
        """Source of the text."""

    @property
    def windows(self) -> int | None:
        """Number of windows; None: all."""

    @property
    def length(self) -> int | None:
        """Tokens per window; None: the default."""

    @property
    def seed(self) -> int:
        """Seed of the draw."""


def calibration_text(settings: Calibration, run: Run) -> CalibrationText:
    """Return the calibration text of a run, and add the notes about it to the run's notes.

    Raises:
        CorpusError: The text cannot be read, or is shorter than one window.
        RecipeError: The windows are longer than the model can read.
    """
    windows = windows_of(settings, run)
    run.notes.extend(windows.notes)
    return CalibrationText(windows, named_dtype(settings.calibration_dtype) or default_dtype(run.machine.device))


def windows_of(settings: WindowSettings, run: Run) -> TokenWindows:
    """Return the token windows that the settings name, for the model of a run.

    Raises:
        CorpusError: The text cannot be read, or is shorter than one window.
        RecipeError: The windows are longer than the model can read.
    """
    model = run.model
    return calibration_windows(
        settings.calibration,
        tokenizer=run.tokenizer,
        model=model,
        windows=settings.windows,
        length=window_length(model.config, settings.length),
        seed=settings.seed,
        vocab_size=model.config.get_text_config().vocab_size,
        bos=needs_bos(model.config),
        progress=run.progress,
    )
