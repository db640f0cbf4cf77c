"""``study``: measure which layers of a model can share a basis."""

from pathlib import Path
from typing import Any, TypedDict, Unpack

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.calibration.text import calibration_text
from basis_sharing.errors import RecipeError
from basis_sharing.recipe.calibration import CalibrationKeywords
from basis_sharing.recipe.model import DtypeName
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.study import StudyResult
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.run import Run, opened, source_of
from basis_sharing.run.stages import least_memory, needs_of
from basis_sharing.run.versions import software_versions
from basis_sharing.treatments.factors.study import RATIOS, study_sharing
from basis_sharing.verbs.stages import calibration_report, shapes_of_run
from basis_sharing.weightings.base import WEIGHTINGS
from basis_sharing.weightings.stage import Collect


class _OwnKeywords(TypedDict, total=False):
    gradients: bool
    dtype: DtypeName


class StudyKeywords(CalibrationKeywords, _OwnKeywords, total=False):
    """The settings of a recipe that a study accepts."""


SETTINGS = tuple(StudyKeywords.__annotations__)


def study(
    model: Any,
    ratio: float | str = 0.4,
    *,
    distance: int | None = None,
    tokenizer: Any = None,
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    **settings: Unpack[StudyKeywords],
) -> StudyResult:
    """Study which layers of a causal language model can share a basis; the model is not changed.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory.
        ratio: Fraction of the parameters removed for table and picture, studied in addition to 0.2 to 0.7.
        distance: Largest distance between the layers of a pair; None: all pairs.
        tokenizer: The tokenizer of a model given in memory.
        work: Folder in which measurements are kept for the next run with the same model and text.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        max_memory: As for :func:`~basis_sharing.verbs.compress.compress`.
        progress: Receives progress events.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe` about calibration; ``gradients`` and
            ``dtype``.

    Returns:
        For every role and pair of layers, the loss of one shared basis divided by that of two private ones.

    Raises:
        BasisSharingError: The settings, the model or the text cannot be used.

    Example:
        >>> import basis_sharing
        >>> result = basis_sharing.study("./llama", distance=1, windows=4)
        >>> [role.name for role in result.study.roles][:3]
        ['q', 'k', 'v']
    """
    wrong = next((name for name in settings if name not in SETTINGS), None)
    if wrong is not None:
        raise RecipeError(f"setting {wrong!r} has no meaning for a study: choose from {', '.join(SETTINGS)}.")
    if distance is not None and distance < 1:
        raise RecipeError(f"--distance {distance} is too small: at least 1, neighbouring layers, is needed.")
    recipe = Recipe.create(ratio=ratio, **settings)
    parse_texts(recipe.calibration)
    source, machine = source_of(model, tokenizer), machine_for(device, max_memory, model)
    with opened(
        recipe, model, source=source, tokenizer=tokenizer, work=work, machine=machine, progress=progress
    ) as run:
        return _studied(recipe, run, distance)


def _studied(recipe: Recipe, run: Run, distance: int | None) -> StudyResult:
    """Collect the weighting of an opened model, and return the study."""
    assert recipe.ratio is not None
    text = calibration_text(recipe, run)
    collect = Collect(WEIGHTINGS[recipe.weighting], text)
    run = run.within(least_memory(needs_of([collect], shapes_of_run(recipe, run, text))))
    collect.run(run)
    study = study_sharing(
        run.model,
        run.whole,
        collect.weighting,
        ratios=(*RATIOS, recipe.ratio),
        distance=distance,
        progress=run.progress,
    )
    return StudyResult(
        model=run.name,
        model_fingerprint=run.fingerprint,
        family=run.whole.family.name,
        ratio=recipe.ratio,
        gradients=recipe.gradients,
        calibration=calibration_report(text),
        study=study,
        notes=tuple(run.notes),
        versions=software_versions(),
    )
