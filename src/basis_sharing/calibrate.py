"""From a recipe's calibration text to the weigher its method needs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.calibration.sweep import default_dtype, sweep
from basis_sharing.calibration.windows import TokenWindows, calibration_windows
from basis_sharing.evaluation.perplexity import window_length
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import dtype_name, named_dtype
from basis_sharing.planning.sensitivity import measure_sensitivity
from basis_sharing.presets import Weighting
from basis_sharing.progress import ProgressCallback
from basis_sharing.recipe import Recipe
from basis_sharing.results.compression import CalibrationReport
from basis_sharing.weighting import Weigher

_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Calibration:
    """The text of a calibration, and the dtype it runs in."""

    windows: TokenWindows
    dtype: torch.dtype

    def report(self) -> CalibrationReport:
        """Return what the result says about it."""
        count, length = self.windows.input_ids.shape
        return CalibrationReport(
            source=self.windows.source,
            fingerprint=self.windows.fingerprint,
            windows=count,
            length=length,
            dtype=dtype_name(self.dtype),
        )


def weighting_of(recipe: Recipe) -> Weighting:
    """Return what a recipe weighs errors with."""
    weighting = recipe.preset.weighting
    return Weighting.SENSITIVITY if weighting == Weighting.LOSS and not recipe.gradients else weighting


def calibration_text(recipe: Recipe, model: Any, tokenizer: Any, progress: ProgressCallback) -> Calibration | None:
    """Prepare the calibration windows, if the method looks at data at all."""
    if recipe.preset.weighting == Weighting.NONE and not recipe.refits:
        return None
    windows = calibration_windows(
        recipe.calibration,
        tokenizer=tokenizer,
        model=model,
        windows=recipe.windows,
        length=window_length(model.config, recipe.length),
        seed=recipe.seed,
        vocab_size=model.config.get_text_config().vocab_size,
        progress=progress,
    )
    return Calibration(windows, named_dtype(recipe.calibration_dtype) or default_dtype(model.device))


@contextmanager
def calibrated(
    weighting: Weighting,
    model: Any,
    decoder: Decoder,
    calibration: Calibration | None,
    progress: ProgressCallback,
) -> Iterator[Weigher]:
    """Collect the statistics a weighting needs; they exist as long as the context."""
    if calibration is None or weighting == Weighting.NONE:
        yield Weigher(weighting)
    elif weighting == Weighting.FISHER:
        fisher = row_fisher(model, decoder, calibration.windows.input_ids, progress=progress)
        yield Weigher(weighting, fisher=fisher)
    elif weighting == Weighting.LOSS:
        with _store(decoder, Statistics(gram=True), gradients=True) as store:
            blocks = backward_sweep(
                model, decoder, calibration.windows.input_ids, dtype=calibration.dtype, progress=progress
            )
            for block, moments in blocks:
                store.put(block, moments)
            yield Weigher(weighting, moments=store)
    else:
        statistics = Statistics(gram=weighting != Weighting.MEAN_ABSOLUTE, abs_sum=weighting != Weighting.SECOND_MOMENT)
        with swept(model, decoder, calibration, statistics, "calibrating", progress) as store:
            sensitivity = None
            if weighting == Weighting.SENSITIVITY:
                unscaled = Weigher(weighting, moments=store, sensitivity={p.name: 1.0 for p in decoder.projections})
                ids = calibration.windows.input_ids
                sensitivity = measure_sensitivity(
                    model, decoder, unscaled, ids, dtype=calibration.dtype, progress=progress
                )
            yield Weigher(weighting, moments=store, sensitivity=sensitivity)


@contextmanager
def swept(
    model: Any,
    decoder: Decoder,
    calibration: Calibration,
    statistics: Statistics,
    stage: str,
    progress: ProgressCallback,
) -> Iterator[MomentStore]:
    """Sweep the calibration windows forward and keep the moments as long as the context."""
    with _store(decoder, statistics) as store:
        blocks = sweep(
            model,
            decoder,
            calibration.windows.input_ids,
            statistics,
            dtype=calibration.dtype,
            stage=stage,
            progress=progress,
        )
        for block, moments in blocks:
            store.put(block, moments)
        yield store


@contextmanager
def _store(decoder: Decoder, statistics: Statistics, gradients: bool = False) -> Iterator[MomentStore]:
    """Yield room for moments, on disk where memory is too small for them."""
    widths = {(p.block, p.input): p.d_in for p in decoder.projections}
    needed = sum(4 * width**2 if statistics.gram else 8 * width for width in widths.values())
    needed += sum(4 * p.d_out**2 for p in decoder.projections) if gradients else 0
    with tempfile.TemporaryDirectory(prefix="basis-sharing-") as folder:
        spill = needed > _MEMORY_SHARE * psutil.virtual_memory().available
        yield MomentStore(Path(folder) if spill else None)
