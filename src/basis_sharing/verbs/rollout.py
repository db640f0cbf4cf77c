"""``rollout``: compress with rising ratios, compare every step with the original, and keep the last good step.

The first step compresses only the roles that hold the most memory. Everything is written as soon as it is done, so that
an interrupted rollout resumes and produces the same bytes::

    DIR/rollout.json                    the steps so far
    DIR/steps/NAME/model                the compressed folder of a step, until a later step is better
    DIR/steps/NAME/{comparison,benchmark}.json
    DIR/work                            measurements of the original, until the rollout is finished
    DIR/best                            the compressed folder that is kept, once the rollout is finished
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.errors import OutputError, RecipeError
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table, starting_point
from basis_sharing.models.source import ModelSource, fingerprint, load_skeleton, refuse_compressed, resolve
from basis_sharing.recipe.calibration import CalibrationKeywords
from basis_sharing.recipe.model import DtypeName
from basis_sharing.recipe.planning import PlanningKeywords
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.repair import RepairKeywords
from basis_sharing.recipe.speed import SpeedKeywords
from basis_sharing.recipe.target import TARGETS
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison, Limits
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.rollout import Rollout, RolloutSettings, Step
from basis_sharing.run.files import locked, output_errors, write_file
from basis_sharing.run.progress import ProgressCallback, silent, titled
from basis_sharing.run.versions import software_versions
from basis_sharing.verbs.bench import bench
from basis_sharing.verbs.compare import compare
from basis_sharing.verbs.compress import compress

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
STATE_FILE = "rollout.json"
_FREE = {*TARGETS, "roles", "evaluate", "evaluation_windows"}


class _OwnKeywords(TypedDict, total=False):
    dtype: DtypeName


class RolloutKeywords(SpeedKeywords, PlanningKeywords, CalibrationKeywords, RepairKeywords, _OwnKeywords, total=False):
    """The settings of a recipe that a rollout accepts: all except targets, roles and texts, which it sets itself."""


def rollout(
    model: str | Path,
    output: str | Path,
    limits: Limits,
    *,
    ratios: Sequence[float | str] = RATIOS,
    text: str = DEFAULT_TEXT,
    evaluation_windows: int | None = None,
    benchmark: bool = True,
    device: str | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    on_step: Callable[[Step], None] = lambda step: None,
    **settings: Unpack[RolloutKeywords],
) -> Rollout:
    """Compress a model step by step until a limit is broken, and keep the last step that holds all limits.

    Args:
        model: A folder, a GGUF file or a hub id.
        output: Folder for all files; an interrupted rollout in it is resumed.
        limits: Limits on the comparison with the original; at least one.
        ratios: Fractions of parameters to remove, ascending, one step each. An additional first step applies the first
            ratio to only the roles that hold the most memory.
        text: Text on which the models are compared.
        evaluation_windows: Number of its windows; None: all.
        benchmark: Measure speed and memory at every step.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        overwrite: Whether another rollout in the folder may be replaced.
        progress: Receives progress events.
        on_step: Receives every step, also those done before an interruption.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe` except targets, roles and texts.

    Returns:
        All steps, and which one is kept.

    Raises:
        BasisSharingError: The settings, the model, a text or the output folder cannot be used.

    Example:
        >>> import basis_sharing
        >>> limits = basis_sharing.Limits(max_perplexity_increase=0.1)
        >>> basis_sharing.rollout("./llama", "./staged", limits, ratios=(0.1,), benchmark=False).finished
        True
    """
    ratios = _checked(ratios, limits, dict(settings))
    recipe = Recipe.create(ratio=ratios[0], **settings)
    parse_texts(recipe.calibration, (text,))
    source, output = resolve(model), Path(output)
    refuse_compressed(source)
    fixed = RolloutSettings(
        model=str(model),
        model_fingerprint=fingerprint(source),
        compression=recipe.model_dump(mode="json", exclude=_FREE),
        ratios=ratios,
        text=text,
        evaluation_windows=evaluation_windows,
        limits=limits,
        benchmark=benchmark,
    )
    return _Steps(output, fixed, device, dict(settings), progress, on_step).taken(_stages(source, ratios), overwrite)


def _stages(source: ModelSource, ratios: Sequence[float]) -> list[tuple[tuple[str, ...], float]]:
    """Return the roles and the ratio of every step."""
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    roles = tuple(dict.fromkeys(part.role for part in decoder.parts))
    first = tuple(row.name for row in starting_point(role_table(skeleton, decoder)))
    return [*([] if set(first) == set(roles) else [(first, ratios[0])]), *((roles, ratio) for ratio in ratios)]


@dataclass(frozen=True)
class _Steps:
    """The steps of one rollout."""

    output: Path
    settings: RolloutSettings
    device: str | None
    keywords: dict[str, Any]
    progress: ProgressCallback
    on_step: Callable[[Step], None]

    def taken(self, stages: Sequence[tuple[tuple[str, ...], float]], overwrite: bool) -> Rollout:
        """Take all steps that are not done yet, until one breaks a limit; return the rollout."""
        with locked(self.output):
            state = _begin(self.output, self.settings, overwrite=overwrite)
            for done, (roles, ratio) in enumerate(stages):
                _tidy(self.output, state)
                if done < len(state.steps):
                    self.on_step(state.steps[done])
                    continue
                if state.finished:
                    break
                step = self.step(state, roles, ratio)
                finished = not step.held or done + 1 == len(stages)
                state = state.model_copy(update={"steps": (*state.steps, step), "finished": finished})
                _write(self.output, state)
                self.on_step(step)
            _tidy(self.output, state)
        return state

    def step(self, state: Rollout, roles: tuple[str, ...], ratio: float) -> Step:
        """Compress, compare and benchmark one step, reusing the files of an interrupted run; return the step."""
        settings = self.settings
        name = f"{len(state.steps) + 1:02d}-{'-'.join(roles)}-{ratio:g}"
        folder, progress = self.output / "steps" / name, titled(self.progress, name)
        compressed, compared, benchmarked = folder / "model", folder / "comparison.json", folder / "benchmark.json"
        if not compressed.exists():
            compress_to = partial(compress, settings.model, ratio, output=compressed, work=self.output / "work")
            compress_to(roles=roles, device=self.device, progress=progress, **self.keywords)
        result = CompressionResult.read(compressed / RESULT_FILE)
        dtype, device = result.recipe.dtype, self.device
        if not compared.exists():
            comparing = partial(compare, settings.model, compressed, text=settings.text, limits=settings.limits)
            windows = settings.evaluation_windows
            comparison = comparing(evaluation_windows=windows, dtype=dtype, device=device, progress=progress)
            write_file(compared, comparison.write)
        if settings.benchmark and not benchmarked.exists():
            models: list[str | Path] = [settings.model, compressed]
            speed = bench(models, batch_sizes=(1,), compile=False, dtype=dtype, device=device, progress=progress)
            write_file(benchmarked, speed.write)
        return _summary(name, roles, ratio, result, Comparison.read(compared), benchmarked)


def _summary(
    name: str, roles: tuple[str, ...], ratio: float, result: CompressionResult, compared: Comparison, benchmarked: Path
) -> Step:
    """Return the record of a step that the rollout keeps."""
    assert compared.difference is not None
    assert compared.agreement is not None
    assert result.after.bytes_on_disk is not None
    return Step(
        name=name,
        roles=roles,
        ratio=ratio,
        parameters=result.after.parameters,
        parameters_before=result.before.parameters,
        bytes_on_disk=result.after.bytes_on_disk,
        perplexity_quotient=compared.difference.quotient,
        mean_kl=compared.agreement.mean_kl,
        top1=compared.agreement.top1,
        prefill_speed=_speed(benchmarked, "prefill"),
        decode_speed=_speed(benchmarked, "decode"),
        verdict=compared.verdict,
    )


def _checked(ratios: Sequence[float | str], limits: Limits, settings: dict[str, Any]) -> tuple[float, ...]:
    """Check the arguments before anything is read, and return the ratios as numbers.

    Raises:
        RecipeError: There is no limit, a setting has no meaning for a rollout, or the ratios do not rise.
    """
    if not limits.given:
        raise RecipeError("a rollout needs a limit to stop at: give e.g. --max-perplexity-increase 5%.")
    if limits.max_drift is not None:
        raise RecipeError("--max-drift has no meaning for a rollout: it has no baseline to drift from.")
    if wrong := next((name for name in settings if name in _FREE), None):
        raise RecipeError(f"setting {wrong!r} has no meaning for a rollout, which sets it itself: leave it out.")
    values = [Recipe.create(ratio=ratio).ratio for ratio in ratios]
    numbers = tuple(value for value in values if value is not None)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise RecipeError("the ratios of a rollout must rise from step to step: write e.g. --ratios 0.1,0.2,0.3.")
    return numbers


def _begin(output: Path, settings: RolloutSettings, *, overwrite: bool) -> Rollout:
    """Return the rollout in a folder, or a new one.

    Raises:
        OutputError: The folder holds something else, or a rollout with other settings.
    """
    state_file = output / STATE_FILE
    if state_file.is_file() and not overwrite:
        state = Rollout.read(state_file)
        stored = state.settings.model_dump()
        changed = next((name for name, value in settings.model_dump().items() if stored[name] != value), None)
        if changed is None:
            return state
        raise OutputError(
            f"{output} holds a rollout with another {changed.replace('_', ' ')}: choose another folder, or pass "
            "--overwrite to start over."
        )
    if output.exists() and not state_file.is_file() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists and holds no rollout: choose another folder.")
    with output_errors(output):
        if state_file.is_file():
            state_file.unlink()  # first, so that after an interruption no rollout appears to be finished
            for name in ("steps", "work", "best"):
                shutil.rmtree(output / name, ignore_errors=True)
    state = Rollout(settings=settings, versions=software_versions())
    _write(output, state)
    return state


def _write(output: Path, state: Rollout) -> None:
    write_file(output / STATE_FILE, state.write)


def _tidy(output: Path, state: Rollout) -> None:
    """Remove all checkpoints except that of the best step, which gets its final name once the rollout is finished.

    The function can be repeated after an interruption.
    """
    best = state.best
    with output_errors(output):
        if state.finished and best is not None and not (output / "best").exists():
            (output / "steps" / best.name / "model").rename(output / "best")
        for step in state.steps:
            if step is not best or state.finished:
                shutil.rmtree(output / "steps" / step.name / "model", ignore_errors=True)
        if state.finished:
            shutil.rmtree(output / "work", ignore_errors=True)


def _speed(file: Path, workload: str) -> float | None:
    """Return the speed of a step as a multiple of the original's; None without a benchmark."""
    if not file.is_file():
        return None
    timings = BenchmarkResult.read(file).models[1].timings
    return next(t.speed.median for t in timings if t.workload == workload and t.execution == "eager")
