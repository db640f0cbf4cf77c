"""``rollout``: more is removed step by step, every step is compared with the original, the last good one is kept.

The first step compresses only the roles that hold the most memory. Everything is written down as soon as it is done, so
that an interrupted rollout is resumed and ends with the same bytes::

    DIR/rollout.json                    the steps so far
    DIR/steps/NAME/model                a compressed folder, until a later step is better
    DIR/steps/NAME/{comparison,benchmark}.json
    DIR/work                            what was measured on the original, until there is no further step
    DIR/best                            the compressed folder that is kept, once there is no further step
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from basis_sharing.calibration.corpora import parse_source
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


class RolloutKeywords(PlanningKeywords, CalibrationKeywords, RepairKeywords, _OwnKeywords, total=False):
    """The settings of a recipe that a rollout has: all but targets, roles and texts, which it sets itself."""


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
    """Compress a model step by step until a limit breaks, and keep the last step that holds them all.

    Args:
        model: A folder, a GGUF file or a hub id.
        output: Folder for everything; an interrupted rollout in it is resumed.
        limits: When to stop; at least one.
        ratios: Fractions of parameters to remove, ascending, one step each. An additional first step applies the first
            ratio to only the roles that hold the most memory.
        text: Text that the models are compared on.
        evaluation_windows: Number of its windows; None: all.
        benchmark: Measure speed and memory at every step.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        overwrite: Start anew where there is another rollout.
        progress: Receives progress events.
        on_step: Receives every step, also one that was done before an interruption.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe` except targets, roles and texts.

    Returns:
        All steps, and which one is kept.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, a text or the output folder.

    Example:
        >>> import basis_sharing
        >>> limits = basis_sharing.Limits(max_perplexity_increase=0.1)
        >>> staged = basis_sharing.rollout("./llama", "./staged", limits, ratios=(0.1,), benchmark=False)
        >>> staged.finished
        True
    """
    ratios = _checked(ratios, limits, dict(settings))
    parse_source(text)
    source, output = resolve(model), Path(output)
    refuse_compressed(source)
    asked = RolloutSettings(
        model=str(model),
        model_fingerprint=fingerprint(source),
        compression=Recipe.create(ratio=ratios[0], **settings).model_dump(mode="json", exclude=_FREE),
        ratios=ratios,
        text=text,
        evaluation_windows=evaluation_windows,
        limits=limits,
        benchmark=benchmark,
    )
    return _Steps(output, asked, device, dict(settings), progress, on_step).taken(_stages(source, ratios), overwrite)


def _stages(source: ModelSource, ratios: Sequence[float]) -> list[tuple[tuple[str, ...], float]]:
    """Return the roles and the ratio of every step."""
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    roles = tuple(dict.fromkeys(p.role for p in decoder.projections))
    first = tuple(row.name for row in starting_point(role_table(skeleton, decoder)))
    return [*([] if set(first) == set(roles) else [(first, ratios[0])]), *((roles, ratio) for ratio in ratios)]


@dataclass(frozen=True)
class _Steps:
    """The steps of one rollout."""

    output: Path
    asked: RolloutSettings
    device: str | None
    settings: dict[str, Any]
    progress: ProgressCallback
    on_step: Callable[[Step], None]

    def taken(self, stages: Sequence[tuple[tuple[str, ...], float]], overwrite: bool) -> Rollout:
        """Take all steps that are not done yet, until one breaks a limit."""
        with locked(self.output):
            state = _begin(self.output, self.asked, overwrite=overwrite)
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
        """Compress, compare and benchmark; what an interrupted run has finished is taken as it is."""
        asked = self.asked
        name = f"{len(state.steps) + 1:02d}-{'-'.join(roles)}-{ratio:g}"
        folder, progress = self.output / "steps" / name, titled(self.progress, name)
        compressed, compared, benchmarked = folder / "model", folder / "comparison.json", folder / "benchmark.json"
        if not compressed.exists():
            ask = partial(compress, asked.model, ratio, output=compressed, work=self.output / "work")
            ask(roles=roles, device=self.device, progress=progress, **self.settings)
        result = CompressionResult.read(compressed / RESULT_FILE)
        dtype, device = result.recipe.dtype, self.device
        if not compared.exists():
            both = partial(compare, asked.model, compressed, text=asked.text, limits=asked.limits)
            windows = asked.evaluation_windows
            comparison = both(evaluation_windows=windows, dtype=dtype, device=device, progress=progress)
            write_file(compared, comparison.write)
        if asked.benchmark and not benchmarked.exists():
            models: list[str | Path] = [asked.model, compressed]
            speed = bench(models, batch_sizes=(1,), dtype=dtype, device=device, progress=progress)
            write_file(benchmarked, speed.write)
        return _summary(name, roles, ratio, result, Comparison.read(compared), benchmarked)


def _summary(
    name: str, roles: tuple[str, ...], ratio: float, result: CompressionResult, compared: Comparison, benchmarked: Path
) -> Step:
    """Return what a rollout remembers of a step."""
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
    """Return the ratios as numbers; refuse what makes no sense before anything is read."""
    if not limits.given:
        raise RecipeError("a rollout needs a limit to stop at: give e.g. --max-perplexity-increase 5%.")
    if limits.max_drift is not None:
        raise RecipeError("--max-drift has no meaning for a rollout: it has no baseline to drift from.")
    if wrong := next((name for name in settings if name in _FREE), None):
        raise RecipeError(f"setting {wrong!r} has no meaning for a rollout, which sets it itself: leave it out.")
    values = [Recipe.create(ratio=ratio).ratio for ratio in ratios]
    found = tuple(value for value in values if value is not None)
    if not found or list(found) != sorted(set(found)):
        raise RecipeError("the ratios of a rollout must rise from step to step: write e.g. --ratios 0.1,0.2,0.3.")
    return found


def _begin(output: Path, asked: RolloutSettings, *, overwrite: bool) -> Rollout:
    """Return the rollout in a folder, or a new one.

    Raises:
        OutputError: The folder holds something else, or a rollout with other settings.
    """
    state_file = output / STATE_FILE
    if state_file.is_file() and not overwrite:
        state = Rollout.read(state_file)
        known = state.settings.model_dump()
        changed = next((name for name, value in asked.model_dump().items() if known[name] != value), None)
        if changed is None:
            return state
        raise OutputError(
            f"{output} holds a rollout with another {changed.replace('_', ' ')}: choose another folder, or pass "
            "--overwrite to start anew."
        )
    if output.exists() and not state_file.is_file() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists and holds no rollout: choose another folder.")
    with output_errors(output):
        if state_file.is_file():
            state_file.unlink()  # first, so that an interruption here leaves no rollout that looks finished
            for name in ("steps", "work", "best"):
                shutil.rmtree(output / name, ignore_errors=True)
    state = Rollout(settings=asked, versions=software_versions())
    _write(output, state)
    return state


def _write(output: Path, state: Rollout) -> None:
    write_file(output / STATE_FILE, state.write)


def _tidy(output: Path, state: Rollout) -> None:
    """Keep one checkpoint: that of the best step so far, under its final name once the rollout is finished.

    Everything here may be interrupted and done again.
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
    """Return how many times as fast as the original a step is."""
    if not file.is_file():
        return None
    timings = BenchmarkResult.read(file).models[1].timings
    return next(t.speed.median for t in timings if t.workload == workload and t.execution == "eager")
