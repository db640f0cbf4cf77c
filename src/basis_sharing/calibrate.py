"""From a recipe's calibration text to the weigher its method needs."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.moments import Moments, MomentStore, Statistics
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
from basis_sharing.work import WorkFolder, measured

_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Calibration:
    """The text of a calibration, and the dtype it runs in."""

    windows: TokenWindows
    dtype: torch.dtype

    def about(self, decoder: Decoder) -> dict[str, object]:
        """Return what the statistics of a structure depend on besides the model."""
        return {
            "text": self.windows.fingerprint,
            "calibration_dtype": dtype_name(self.dtype),
            "projections": [p.name for p in decoder.projections],
        }

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
    work: WorkFolder | None = None,
) -> Iterator[Weigher]:
    """Collect the statistics a weighting needs.

    They exist as long as the context, or stay in a work folder, from which they are taken where they are there.
    """
    if calibration is None or weighting == Weighting.NONE:
        yield Weigher(weighting)
        return
    if weighting == Weighting.FISHER:
        yield Weigher(weighting, fisher=_fisher(model, decoder, calibration, progress, work))
        return
    statistics = Statistics(gram=weighting != Weighting.MEAN_ABSOLUTE, abs_sum=weighting != Weighting.SECOND_MOMENT)
    with _moments(weighting, statistics, model, decoder, calibration, progress, work) as store:
        sensitivity = None
        if weighting == Weighting.SENSITIVITY:
            sensitivity = _sensitivity(store, model, decoder, calibration, progress, work)
        yield Weigher(weighting, moments=store, sensitivity=sensitivity)


@contextmanager
def _moments(
    weighting: Weighting,
    statistics: Statistics,
    model: Any,
    decoder: Decoder,
    calibration: Calibration,
    progress: ProgressCallback,
    work: WorkFolder | None,
) -> Iterator[MomentStore]:
    ids, dtype, gradients = calibration.windows.input_ids, calibration.dtype, weighting == Weighting.LOSS

    def blocks(statistics: Statistics, folder: Path | None) -> Iterator[tuple[int, dict[str, Moments]]]:
        if gradients:
            return backward_sweep(model, decoder, ids, dtype=dtype, folder=folder, progress=progress)
        return sweep(model, decoder, ids, statistics, dtype=dtype, folder=folder, progress=progress)

    if work is None:
        with _store(decoder, statistics, gradients) as store:
            store.fill(blocks(statistics, None))
            yield store
        return
    # What is kept serves every method, and what gradients were measured with serves those without as well.
    everything, about = Statistics(gram=True, abs_sum=True), calibration.about(decoder)
    folder = None if gradients else work.find("gradients", about)
    if folder is None:
        kind = "gradients" if gradients else "moments"
        folder = work.measured(kind, about, lambda folder: MomentStore(folder).fill(blocks(everything, folder)))
    yield MomentStore(folder)


def _fisher(
    model: Any, decoder: Decoder, calibration: Calibration, progress: ProgressCallback, work: WorkFolder | None
) -> dict[str, Tensor]:
    return measured(
        work,
        "fisher",
        calibration.about(decoder),
        lambda: row_fisher(model, decoder, calibration.windows.input_ids, progress=progress),
        write=lambda fisher, folder: save_file(fisher, folder / "fisher.safetensors"),
        read=lambda folder: load_file(folder / "fisher.safetensors"),
    )


def _sensitivity(
    store: MomentStore,
    model: Any,
    decoder: Decoder,
    calibration: Calibration,
    progress: ProgressCallback,
    work: WorkFolder | None,
) -> dict[str, float]:
    unscaled = Weigher(Weighting.SENSITIVITY, store, sensitivity={p.name: 1.0 for p in decoder.projections})
    ids, dtype = calibration.windows.input_ids, calibration.dtype

    def write(sensitivity: dict[str, float], folder: Path) -> None:
        (folder / "sensitivity.json").write_text(json.dumps(sensitivity), encoding="utf-8")

    return measured(
        work,
        "sensitivity",
        calibration.about(decoder),
        lambda: measure_sensitivity(model, decoder, unscaled, ids, dtype=dtype, progress=progress),
        write=write,
        read=lambda folder: json.loads((folder / "sensitivity.json").read_text(encoding="utf-8")),
    )


@contextmanager
def swept(
    model: Any,
    decoder: Decoder,
    calibration: Calibration,
    statistics: Statistics,
    stage: str,
    folder: Path | None,
    progress: ProgressCallback,
) -> Iterator[MomentStore]:
    """Sweep the calibration windows forward and keep the moments as long as the context.

    With a folder they stay there, and a sweep of the same model and text that was interrupted is gone on with.
    """
    with nullcontext(MomentStore(folder)) if folder is not None else _store(decoder, statistics) as store:
        ids, dtype = calibration.windows.input_ids, calibration.dtype
        store.fill(sweep(model, decoder, ids, statistics, dtype=dtype, stage=stage, folder=folder, progress=progress))
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
