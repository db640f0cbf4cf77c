"""The story of one sharing study, from a model to what may share a basis in it."""

from pathlib import Path
from typing import Any, Literal

from basis_sharing.calibration.collect import calibrated, calibration_text, weighting_of
from basis_sharing.errors import RecipeError
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.base import Result, software_versions
from basis_sharing.results.compression import CalibrationReport
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.run import opened, source_of
from basis_sharing.treatments.factors.study import RATIOS, SharingStudy, study_sharing
from basis_sharing.verbs.estimate import within_memory

SETTINGS = ("gradients", "calibration", "windows", "length", "seed", "dtype", "calibration_dtype")


class StudyResult(Result):
    """A study, and what it was made from.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        family: Family whose structure was used.
        ratio: The ratio that table and picture show.
        gradients: Whether errors are weighted with loss gradients, or with one measured number per projection.
        calibration: The calibration text.
        study: What was found.
        notes: Everything unusual that happened, one sentence each.
        versions: Versions of the software.
    """

    kind: Literal["study"] = "study"
    model: str
    model_fingerprint: str | None
    family: str
    ratio: float
    gradients: bool
    calibration: CalibrationReport
    study: SharingStudy
    notes: tuple[str, ...]
    versions: dict[str, str]


def study(
    model: Any,
    ratio: float = 0.4,
    *,
    distance: int | None = None,
    tokenizer: Any = None,
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> StudyResult:
    """Study which layers of a causal language model may share a basis; the model is not changed.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory.
        ratio: Fraction of the parameters removed that is shown; studied besides those of
            :data:`~basis_sharing.treatments.factors.study.RATIOS`.
        distance: Compare only layers that are at most so far apart; None: all.
        tokenizer: The tokenizer of a model given in memory.
        work: Folder where what is measured is kept, and taken from by the next run with the same model and text.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        max_memory: As for :func:`~basis_sharing.verbs.compress.compress`.
        progress: Receives progress events.
        **settings: Fields of :class:`~basis_sharing.recipe.recipe.Recipe`, those in :data:`SETTINGS`.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model or the text.
    """
    wrong = next((name for name in settings if name not in SETTINGS), None)
    if wrong is not None:
        raise RecipeError(f"setting {wrong!r} has no meaning for a study: choose from {', '.join(SETTINGS)}.")
    if distance is not None and distance < 1:
        raise RecipeError(f"--distance {distance} is too small: at least 1, neighbouring layers, is needed.")
    recipe = Recipe.create(ratio=ratio, **settings)
    assert recipe.ratio is not None
    machine = machine_for(device, max_memory, model)
    with opened(recipe, source_of(model, tokenizer), model, tokenizer, work, machine, progress) as subject:
        calibration = calibration_text(recipe, subject, progress)
        assert calibration is not None
        subject = within_memory(recipe, subject, calibration)
        with calibrated(weighting_of(recipe), subject, calibration, progress) as weigher:
            found = study_sharing(
                subject.model,
                subject.whole,
                weigher,
                ratios=(*RATIOS, recipe.ratio),
                distance=distance,
                progress=progress,
            )
    return StudyResult(
        model=subject.name,
        model_fingerprint=subject.fingerprint,
        family=subject.whole.family.name,
        ratio=recipe.ratio,
        gradients=recipe.gradients,
        calibration=calibration.report(),
        study=found,
        notes=calibration.windows.notes,
        versions=software_versions(),
    )
