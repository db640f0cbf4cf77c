"""The staged way in: more is removed step by step, each step is held against the original, the last good one is kept.

The first step compresses only the roles that hold the most memory. Everything is written down as soon as it is done,
so that a rollout that was killed goes on where it stopped and ends with the same bytes::

    DIR/rollout.json                    the steps so far
    DIR/steps/NAME/model                a compressed folder, until a later step is better
    DIR/steps/NAME/{comparison,benchmark}.json
    DIR/work                            what was measured on the original, until there is no further step
    DIR/best                            the compressed folder that is kept, once there is no further step
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from basis_sharing.calibration.corpora import parse_source
from basis_sharing.errors import OutputError, RecipeError
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table, starting_point
from basis_sharing.models.source import fingerprint, load_skeleton, refuse_compressed, resolve
from basis_sharing.recipe.recipe import TARGETS, Recipe
from basis_sharing.results.base import software_versions
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison, Limits
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.rollout import Rollout, RolloutSettings, Step
from basis_sharing.run.files import locked, output_errors, write_file
from basis_sharing.run.progress import ProgressCallback, silent, titled
from basis_sharing.verbs.bench import bench
from basis_sharing.verbs.compare import compare
from basis_sharing.verbs.compress import compress

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
STATE_FILE = "rollout.json"
_FREE = {*TARGETS, "roles", "evaluate", "evaluation_windows"}


def rollout(
    model: str | Path,
    output: str | Path,
    limits: Limits,
    *,
    ratios: Sequence[float | str] = RATIOS,
    text: str = DEFAULT_TEXT,
    evaluation_windows: int | None = None,
    benchmark: bool = True,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    on_step: Callable[[Step], None] = lambda step: None,
    **settings: Any,
) -> Rollout:
    """Compress a model step by step until a limit breaks, and keep the last step that holds them all.

    Args:
        model: A folder, a GGUF file or a hub id.
        output: Folder for everything; one with an interrupted rollout is gone on with.
        limits: When to stop; at least one.
        ratios: Fractions of parameters to remove, ascending, one step each; before them comes a step with the first
            ratio and only the roles that hold the most memory.
        text: Text that the models are compared on.
        evaluation_windows: Number of its windows; None: all.
        benchmark: Measure speed and memory at every step.
        overwrite: Start anew where there is another rollout.
        progress: Receives progress events.
        on_step: Receives every step, also one that was done before an interruption.
        **settings: Fields of :class:`~basis_sharing.recipe.recipe.Recipe` except targets, roles and evaluation.

    Returns:
        All steps, and which one is kept.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, a text or the output folder.
    """
    ratios = _checked(ratios, limits, settings)
    parse_source(text)
    source, output = resolve(model), Path(output)
    refuse_compressed(source)
    recipe = Recipe.create(ratio=ratios[0], **settings)
    asked = RolloutSettings(
        model=str(model),
        model_fingerprint=fingerprint(source),
        compression=recipe.model_dump(mode="json", exclude=_FREE),
        ratios=ratios,
        text=text,
        evaluation_windows=evaluation_windows,
        limits=limits,
        benchmark=benchmark,
    )
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    roles = tuple(dict.fromkeys(p.role for p in decoder.projections))
    first = tuple(row.name for row in starting_point(role_table(skeleton, decoder)))
    stages = [*([] if set(first) == set(roles) else [(first, ratios[0])]), *((roles, ratio) for ratio in ratios)]
    with locked(output):
        state = _begin(output, asked, overwrite=overwrite)
        for done, (stage_roles, ratio) in enumerate(stages):
            _tidy(output, state)
            if done < len(state.steps):
                on_step(state.steps[done])
                continue
            if state.finished:
                break
            step = _step(output, state, stage_roles, ratio, settings, progress)
            finished = not step.held or done + 1 == len(stages)
            state = state.model_copy(update={"steps": (*state.steps, step), "finished": finished})
            _write(output, state)
            on_step(step)
        _tidy(output, state)
    return state


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


def _step(
    output: Path,
    state: Rollout,
    roles: tuple[str, ...],
    ratio: float,
    settings: dict[str, Any],
    progress: ProgressCallback,
) -> Step:
    """Compress, compare and benchmark; what an interrupted run has finished is taken as it is."""
    asked = state.settings
    name = f"{len(state.steps) + 1:02d}-{'-'.join(roles)}-{ratio:g}"
    folder = output / "steps" / name
    compressed, compared, benchmarked = folder / "model", folder / "comparison.json", folder / "benchmark.json"
    if not compressed.exists():
        compress(
            asked.model,
            ratio,
            output=compressed,
            work=output / "work",
            roles=roles,
            progress=titled(progress, name),
            **settings,
        )
    result = CompressionResult.read(compressed / RESULT_FILE)
    if not compared.exists():
        comparison = compare(
            asked.model,
            compressed,
            text=asked.text,
            limits=asked.limits,
            evaluation_windows=asked.evaluation_windows,
            dtype=result.recipe.dtype,
            progress=titled(progress, name),
        )
        write_file(compared, comparison.write)
    comparison = Comparison.read(compared)
    if asked.benchmark and not benchmarked.exists():
        speed = bench(
            [asked.model, compressed], batch_sizes=(1,), dtype=result.recipe.dtype, progress=titled(progress, name)
        )
        write_file(benchmarked, speed.write)
    assert comparison.difference is not None
    assert comparison.agreement is not None
    assert result.after.bytes_on_disk is not None
    return Step(
        name=name,
        roles=roles,
        ratio=ratio,
        parameters=result.after.parameters,
        parameters_before=result.before.parameters,
        bytes_on_disk=result.after.bytes_on_disk,
        perplexity_quotient=comparison.difference.quotient,
        mean_kl=comparison.agreement.mean_kl,
        top1=comparison.agreement.top1,
        prefill_speed=_speed(benchmarked, "prefill"),
        decode_speed=_speed(benchmarked, "decode"),
        verdict=comparison.verdict,
    )


def _speed(file: Path, workload: str) -> float | None:
    """Return how many times as fast as the original a step is."""
    if not file.is_file():
        return None
    timings = BenchmarkResult.read(file).models[1].timings
    return next(t.speed.median for t in timings if t.workload == workload and t.execution == "eager")
