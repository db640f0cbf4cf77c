"""``compress``: compress a model."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.calibration.text import CalibrationText, calibration_text
from basis_sharing.checkpoint.writer import check_space, publish, reserve
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.stage import prepared_texts
from basis_sharing.models.family import Decoder
from basis_sharing.models.multimodal import auto_class_of_model
from basis_sharing.models.sizes import memory_bytes, parameter_count, weight_file_bytes
from basis_sharing.models.source import ModelSource, stored_bytes
from basis_sharing.planning.clock import check_machine
from basis_sharing.planning.published import shared_roles_of
from basis_sharing.plans.plan import Plan, dense_multiplications, dense_parameters
from basis_sharing.recipe.recipe import Recipe, RecipeKeywords, as_recipe
from basis_sharing.reports.card import write_result
from basis_sharing.results.compression import CompressionResult, EntryReport
from basis_sharing.results.measures import Sizes
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.run import Run, opened, source_of
from basis_sharing.run.stages import least_memory, needs_of
from basis_sharing.run.versions import software_versions
from basis_sharing.run.work import same_run, work_beside
from basis_sharing.runtime.surgery import projection_parameters
from basis_sharing.verbs.stages import CompressionStages, calibration_report, known_plan, shapes_of_run, with_plan

OnPlan = Callable[[Plan], None]


def compress(
    model: Any,
    recipe: Recipe | float | str | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    on_plan: OnPlan | None = None,
    **settings: Unpack[RecipeKeywords],
) -> tuple[Any, CompressionResult]:
    """Compress a causal language model.

    After an interruption the same call resumes the work and produces the same bytes. Several processes that
    ``torchrun`` has started share the work and return the same; the first one writes ``output``.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory, which is changed in place.
        recipe: A recipe, or the ratio: the fraction of the parameters to remove from the compressible projections.
        output: Folder for the compressed model; None: it is only returned.
        overwrite: Whether a model folder at ``output`` may be replaced.
        tokenizer: The tokenizer of a model given in memory.
        work: Folder in which measurements are kept for the next run with the same model and text. By default a folder
            beside ``output``, removed at the end. Nothing is kept for a model in memory.
        device: Device on which blocks run and matrices are decomposed: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``;
            None: the device of a model in memory, else ``"auto"``.
        max_memory: Bytes of memory this process may take, also as text, ``"6GiB"``; None: most of the free memory.
            Weights that are read in place from their files do not count.
        progress: Receives progress events.
        on_plan: Receives the plan before it is carried out.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe`, e.g. ``method="svd-llm"``.

    Returns:
        The compressed model, ready to use and to ``save_pretrained``, and the result.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, the text or the output.

    Example:
        >>> import basis_sharing
        >>> model, result = basis_sharing.compress("./llama", ratio=0.2, output="./llama-20")
        >>> result.after.parameters < result.before.parameters
        True
    """
    recipe, given = with_plan(as_recipe(recipe, settings))
    check_machine(recipe)
    source, machine = source_of(model, tokenizer), machine_for(device, max_memory, model)
    own_work = work_beside(Path(output)) if output is not None and work is None and source is not None else None
    inputs, kept = [*_input_paths(recipe, source), *([] if work is None else [Path(work)])], own_work or work
    with (
        _staging(output, inputs, overwrite=overwrite, first=machine.processes.first) as staging,
        opened(recipe, model, source=source, tokenizer=tokenizer, work=kept, machine=machine, progress=progress) as run,
    ):
        result = _Compression(recipe, given, run, staging, on_plan).carried_out(own_work)
        if output is not None and staging is not None:
            publish(staging, Path(output))
    return run.model, result


@contextmanager
def _staging(output: str | Path | None, inputs: list[Path], *, overwrite: bool, first: bool) -> Generator[Path | None]:
    """Reserve the output folder and yield its staging folder; None if this process writes nothing."""
    if output is None or not first:
        yield None
        return
    with reserve(Path(output), overwrite=overwrite, inputs=inputs) as folder:
        yield folder


@dataclass
class _Compression:
    """One compression of an opened model."""

    recipe: Recipe
    given: Plan | None
    run: Run
    staging: Path | None
    on_plan: OnPlan | None
    before: Sizes = field(init=False)

    def carried_out(self, own_work: Path | None) -> CompressionResult:
        """Run all stages, and return the result, which is also written beside the model.

        Raises:
            RecipeError: Blocks are to be trained in several processes.
        """
        recipe, run = self.recipe, self.run
        if recipe.refine is not None and run.processes.count > 1:
            raise RecipeError("--refine runs in one process: leave torchrun away.")
        source, decoder = run.source, run.decoder
        self.before = _sizes(run.model, decoder, None, stored_bytes(source) if source is not None else None)
        shared_roles = shared_roles_of(recipe, decoder)
        given = self._given_plan()
        texts = prepared_texts(recipe, recipe.length, run)
        text = calibration_text(recipe, run) if recipe.reads_text else None
        stages = CompressionStages(recipe, text, given, self.staging, self.announce)
        stages.original.check_text()
        stages.evaluate_with(texts)
        self.run = run = run.within(least_memory(needs_of(stages.listed(), shapes_of_run(recipe, run, text))))
        if own_work is not None and run.processes.first:
            run.stack.enter_context(same_run(own_work, _identity(recipe, run, text)))
        run.notes.extend(_plan_notes(given, run))
        run.carry_out(stages.listed())
        result = self._result(stages, text, shared_roles)
        if self.staging is not None:
            write_result(self.staging, source, result)
        return result

    def _given_plan(self) -> Plan | None:
        """Announce and return the plan that is known before anything is measured; None: it is made later."""
        recipe, run = self.recipe, self.run
        plan = known_plan(recipe, self.given, run.decoder)
        if plan is not None:
            self.announce(plan)
        elif recipe.ratio is not None:
            self._check_space(round((1 - recipe.ratio) * self.before.projection_parameters) * run.model.dtype.itemsize)
        return plan

    def announce(self, plan: Plan) -> None:
        """Check that a plan fits the model and the disk, and report it."""
        plan.check(self.run.whole)
        self._check_space(plan.bytes(self.run.decoder, self.run.model.dtype.itemsize))
        count = len(plan.entries)
        speeds = () if plan.prediction is None else plan.prediction.speeds
        less = f"{plan.removed_fraction(self.run.decoder):.2%} less"
        if any(entry.tensors for entry in plan.entries):
            stored = plan.bytes(self.run.decoder, self.run.model.dtype.itemsize)
            less += f", {8 * stored / dense_parameters(self.run.decoder):.2f} bits per weight"
        expected = ", ".join([less, *(f"{speed.phase} {speed.speed:.2f} x" for speed in speeds)])
        self.run.progress(Progress(f"planned, {expected}", count, count, "groups"))
        if self.on_plan is not None:
            self.on_plan(plan)

    def _check_space(self, projections: int) -> None:
        """Check that the disk has space for a model whose projections take so many bytes, and for its parts."""
        if self.staging is not None:
            dense = self.before.projection_parameters * self.run.model.dtype.itemsize
            size = self.before.bytes_in_memory - dense + projections
            check_space(self.staging, size if self.run.work is None else 2 * size)

    def _result(
        self, stages: CompressionStages, text: CalibrationText | None, shared_roles: tuple[str, ...]
    ) -> CompressionResult:
        recipe, run, before = self.recipe, self.run, self.before
        plan, executed = stages.plan.plan, stages.execute.executed
        carried_out = plan.model_copy(update={"entries": tuple(done.entry for done in executed)})
        on_disk = weight_file_bytes(self.staging) if self.staging is not None else None
        after = _sizes(run.model, run.decoder, carried_out, on_disk)
        return CompressionResult(
            model=run.name,
            model_fingerprint=run.fingerprint,
            family=run.decoder.family.name,
            recipe=recipe,
            method=recipe.method,
            shared_roles=shared_roles,
            calibration=calibration_report(text) if text is not None else None,
            ratio_reached=1 - after.projection_parameters / before.projection_parameters,
            before=before,
            after=after,
            prediction=plan.prediction,
            entries=tuple(EntryReport(**vars(done)) for done in executed),
            perplexity_before=stages.before.perplexities,
            perplexity_after=stages.after.perplexities,
            notes=tuple(run.notes),
            versions=software_versions(),
            repair=stages.repair.report,
            loader=auto_class_of_model(run.model).__name__,
        )


def _plan_notes(plan: Plan | None, run: Run) -> list[str]:
    """Return notes about a given plan: that it was made for other weights."""
    if plan is None or plan.planned_for is None or run.source is None:
        return []
    if plan.planned_for.fingerprint in (None, run.fingerprint):
        return []
    return [f"the plan was made for {plan.planned_for.model}, with other weights: its prediction may not hold here."]


def _identity(recipe: Recipe, run: Run, text: CalibrationText | None) -> dict[str, dict[str, object]]:
    """Return the names and values that identify a run when it is resumed, by subject."""
    return {
        "the model": {"weights": run.fingerprint},
        "the calibration text": {"tokens": text.windows.fingerprint if text is not None else None},
        "setting": {**recipe.model_dump(mode="json"), "processes": run.processes.count},
        "software": dict(software_versions()),
    }


def _sizes(model: Any, decoder: Decoder, plan: Plan | None, on_disk: int | None) -> Sizes:
    itemsize = model.dtype.itemsize
    return Sizes(
        parameters=parameter_count(model),
        projection_parameters=projection_parameters(model, [part.name for part in decoder.parts]),
        projection_bytes=dense_parameters(decoder) * itemsize if plan is None else plan.bytes(decoder, itemsize),
        projection_multiplications=dense_multiplications(decoder) if plan is None else plan.multiplications(decoder),
        bytes_in_memory=memory_bytes(model),
        bytes_on_disk=on_disk,
    )


def _input_paths(recipe: Recipe, source: ModelSource | None) -> list[Path]:
    """Return the local files and folders that a run reads."""
    texts = parse_texts(recipe.calibration, recipe.evaluate)
    paths = [text.path for text in texts if text.path is not None]
    if source is not None and source.path is not None:
        paths.append(source.path / source.gguf_file if source.gguf_file else source.path)
    return paths
