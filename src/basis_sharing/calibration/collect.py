"""From a recipe's calibration text to the weigher its method needs."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import Moments, MomentStore, Statistics
from basis_sharing.calibration.sensitivity import measure_sensitivity
from basis_sharing.calibration.windows import TokenWindows, calibration_windows
from basis_sharing.evaluation.perplexity import window_length
from basis_sharing.models.families import needs_bos
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import dtype_name, named_dtype
from basis_sharing.recipe.presets import Weighting
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.compression import CalibrationReport
from basis_sharing.run.machine import Machine, default_dtype
from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.run import Subject
from basis_sharing.run.work import measured
from basis_sharing.weightings.weighting import Weigher


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


def calibration_text(recipe: Recipe, subject: Subject, progress: ProgressCallback) -> Calibration | None:
    """Prepare the calibration windows, if the method looks at data at all."""
    if recipe.preset.weighting == Weighting.NONE and recipe.chosen_refit == "never" and recipe.refine is None:
        return None
    model = subject.model
    windows = calibration_windows(
        recipe.calibration,
        tokenizer=subject.tokenizer,
        model=model,
        windows=recipe.windows,
        length=window_length(model.config, recipe.length),
        seed=recipe.seed,
        vocab_size=model.config.get_text_config().vocab_size,
        bos=needs_bos(model.config.model_type),
        progress=progress,
    )
    return Calibration(windows, named_dtype(recipe.calibration_dtype) or default_dtype(subject.machine.device))


@contextmanager
def calibrated(
    weighting: Weighting, subject: Subject, calibration: Calibration | None, progress: ProgressCallback
) -> Iterator[Weigher]:
    """Collect the statistics of a subject that a weighting needs.

    They exist as long as the context, or stay in its work folder, from which they are taken where they are there.
    """
    machine = subject.machine
    if calibration is None or weighting == Weighting.NONE:
        yield Weigher(weighting, device=machine.algebra)
        return
    if weighting == Weighting.FISHER:
        yield Weigher(weighting, fisher=_fisher(subject, calibration, progress), device=machine.algebra)
        return
    statistics = Statistics(gram=weighting != Weighting.MEAN_ABSOLUTE, abs_sum=weighting != Weighting.SECOND_MOMENT)
    with _moments(weighting, statistics, subject, calibration, progress) as store:
        weigher = Weigher(weighting, moments=store, device=machine.algebra, remembered_bytes=machine.whitening_bytes)
        if weighting == Weighting.SENSITIVITY:
            weigher.sensitivity = _sensitivity(weigher, subject, calibration, progress)
        yield weigher


@contextmanager
def _moments(
    weighting: Weighting,
    statistics: Statistics,
    subject: Subject,
    calibration: Calibration,
    progress: ProgressCallback,
) -> Iterator[MomentStore]:
    model, decoder, machine, work = subject.model, subject.collected, subject.machine, subject.work
    ids, dtype, gradients = calibration.windows.input_ids, calibration.dtype, weighting == Weighting.LOSS

    def blocks(statistics: Statistics, folder: Path | None) -> Iterator[tuple[int, dict[str, Moments]]]:
        if gradients:
            return backward_sweep(model, decoder, ids, dtype=dtype, folder=folder, machine=machine, progress=progress)
        return sweep(model, decoder, ids, statistics, dtype=dtype, folder=folder, machine=machine, progress=progress)

    if work is None:
        with _store(decoder, machine, statistics, gradients) as store:
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


def _fisher(subject: Subject, calibration: Calibration, progress: ProgressCallback) -> dict[str, Tensor]:
    ids = calibration.windows.input_ids
    return measured(
        subject.work,
        "fisher",
        calibration.about(subject.collected),
        lambda: row_fisher(subject.model, subject.collected, ids, machine=subject.machine, progress=progress),
        write=lambda fisher, folder: save_file(fisher, folder / "fisher.safetensors"),
        read=lambda folder: load_file(folder / "fisher.safetensors"),
    )


def _sensitivity(
    weigher: Weigher, subject: Subject, calibration: Calibration, progress: ProgressCallback
) -> dict[str, float]:
    model, decoder, machine = subject.model, subject.collected, subject.machine
    unscaled = replace(weigher, sensitivity={p.name: 1.0 for p in decoder.projections})
    ids, dtype = calibration.windows.input_ids, calibration.dtype

    def write(sensitivity: dict[str, float], folder: Path) -> None:
        (folder / "sensitivity.json").write_text(json.dumps(sensitivity), encoding="utf-8")

    return measured(
        subject.work,
        "sensitivity",
        calibration.about(decoder),
        lambda: measure_sensitivity(model, decoder, unscaled, ids, dtype=dtype, machine=machine, progress=progress),
        write=write,
        read=lambda folder: json.loads((folder / "sensitivity.json").read_text(encoding="utf-8")),
    )


@contextmanager
def swept(
    subject: Subject,
    calibration: Calibration,
    statistics: Statistics,
    stage: str,
    folder: Path | None,
    progress: ProgressCallback,
) -> Iterator[MomentStore]:
    """Sweep the calibration windows forward, through the projections of the recipe, and keep the moments.

    With a folder they stay there, and a sweep of the same model and text that was interrupted is gone on with.
    """
    decoder, machine = subject.decoder, subject.machine
    with nullcontext(MomentStore(folder)) if folder is not None else _store(decoder, machine, statistics) as store:
        found = sweep(
            subject.model,
            decoder,
            calibration.windows.input_ids,
            statistics,
            dtype=calibration.dtype,
            stage=stage,
            folder=folder,
            machine=machine,
            progress=progress,
        )
        store.fill(found)
        yield store


@contextmanager
def _store(
    decoder: Decoder, machine: Machine, statistics: Statistics, gradients: bool = False
) -> Iterator[MomentStore]:
    """Yield room for moments, on disk where memory is too small for them."""
    widths = {(p.block, p.input): p.d_in for p in decoder.projections}
    needed = sum(4 * width**2 if statistics.gram else 8 * width for width in widths.values())
    needed += sum(4 * p.d_out**2 for p in decoder.projections) if gradients else 0
    with tempfile.TemporaryDirectory(prefix="basis-sharing-") as folder:
        yield MomentStore(None if machine.holds_moments(needed) else Path(folder))
