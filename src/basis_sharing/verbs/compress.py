"""The story of one compression, from a model to a smaller one."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

import basis_sharing
from basis_sharing.calibration.collect import Calibration, calibrated, calibration_text, swept, weighting_of
from basis_sharing.calibration.corpora import parse_mixture, parse_source
from basis_sharing.calibration.moments import Statistics
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.checkpoint.writer import check_space, publish, reserve, write_model
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder
from basis_sharing.models.sizes import memory_bytes, parameter_count, weight_file_bytes
from basis_sharing.models.source import ModelSource, load_model, stored_bytes
from basis_sharing.planning.from_recipe import fixed_plan, planner_for, shared_roles_of
from basis_sharing.planning.targets import target_plan
from basis_sharing.plans.plan import Plan, dense_parameters
from basis_sharing.recipe.presets import Weighting
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.repair.blocks import propagate
from basis_sharing.repair.segments import check_text, segment_length
from basis_sharing.reports.card import CARD_FILE, model_card
from basis_sharing.results.base import software_versions
from basis_sharing.results.compression import RESULT_FILE, CompressionResult, GroupReport, PropagationReport
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.run.files import output_errors
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.run import Subject, opened, source_of
from basis_sharing.run.work import same_run, until_done, work_beside
from basis_sharing.runtime.surgery import declare_compressed, install_factors, projection_parameters
from basis_sharing.treatments.factors.solve import factorize, refit
from basis_sharing.verbs.estimate import within_memory
from basis_sharing.weightings.weighting import Weigher


def compress(
    model: Any,
    ratio: float | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    on_plan: Callable[[Plan], None] | None = None,
    **settings: Any,
) -> tuple[Any, CompressionResult]:
    """Compress a causal language model.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory, which is changed in
            place.
        ratio: Fraction of the parameters to remove from the compressible projections, or None and another target.
        output: Folder for the compressed model; None: it is only returned.
        overwrite: Whether a model folder at ``output`` may be replaced.
        tokenizer: The tokenizer of a model given in memory.
        work: Folder where what is measured is kept, and taken from by the next run with the same model and text. By
            default a folder beside ``output``, which is removed at the end; after an interruption the same call goes on
            from there and ends with the same bytes. Nothing is kept of a model in memory.
        device: Where blocks run and matrices are decomposed, one at a time: ``"cpu"``, ``"cuda"``, ``"mps"`` or
            ``"auto"``; None: where a model in memory is, else ``"auto"``.
        max_memory: Bytes of memory this process may take, also as text, ``"6GiB"``; None: most of what is free. Weights
            that are used from their files do not count, since the system can drop them.
        progress: Receives progress events.
        on_plan: Receives the plan before it is executed.
        **settings: The other fields of :class:`~basis_sharing.recipe.recipe.Recipe`, e.g. ``method="svd-llm"``.

    Returns:
        The compressed model, ready to use and to ``save_pretrained``, and the result. Several processes that
        ``torchrun`` has started share the work, and all return the same; the first one writes ``output``.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, the text or the output; see
            :mod:`basis_sharing.errors`.
    """
    recipe = Recipe.create(ratio=ratio, **settings)
    given = Plan.read(recipe.plan) if recipe.plan is not None else None
    if given is not None:
        recipe = recipe.model_copy(update={"method": given.method, "gradients": given.gradients})
    source = source_of(model, tokenizer)
    own_work = work_beside(Path(output)) if output is not None and work is None and source is not None else None
    machine = machine_for(device, max_memory, model)
    if recipe.refine is not None and machine.ranks.size > 1:
        raise RecipeError("--refine runs in one process: leave torchrun away.")
    with ExitStack() as stack:
        staging = None
        if output is not None and machine.ranks.first:
            inputs = _input_paths(recipe, source)
            staging = stack.enter_context(reserve(Path(output), overwrite=overwrite, inputs=inputs))
        subject = stack.enter_context(opened(recipe, source, model, tokenizer, own_work or work, machine, progress))
        result = _run(recipe, given, subject, staging, own_work, stack, progress, on_plan)
        if output is not None and staging is not None:
            _write_card(staging, source, result)
            publish(staging, Path(output))
    return subject.model, result


def _run(
    recipe: Recipe,
    given: Plan | None,
    subject: Subject,
    staging: Path | None,
    own_work: Path | None,
    stack: ExitStack,
    progress: ProgressCallback,
    on_plan: Callable[[Plan], None] | None,
) -> CompressionResult:
    """Compress the subject's model in place, and write it into ``staging`` if there is one.

    What is kept for the case of an interruption goes when ``stack`` is left without an error.
    """
    source, model, tokenizer, decoder = subject.source, subject.model, subject.tokenizer, subject.decoder
    shared_roles = shared_roles_of(recipe, decoder)
    plan = given if given is not None or recipe.preset.planned else fixed_plan(recipe, decoder)
    before = _sizes(model, decoder, None, stored_bytes(source) if source is not None else None)

    def announce(plan: Plan) -> None:
        plan.check(subject.whole)
        _check_space(staging, plan.parameters(decoder), subject, before)
        count = len(plan.groups)
        progress(Progress(f"planned, {plan.removed_fraction(decoder):.2%} less", count, count, "groups"))
        if on_plan is not None:
            on_plan(plan)

    if plan is not None:
        announce(plan)
    elif recipe.ratio is not None:
        _check_space(staging, round((1 - recipe.ratio) * before.projection_parameters), subject, before)
    texts = [
        prepare_text(model, tokenizer, text, windows=recipe.evaluation_windows, length=recipe.length)
        for text in recipe.evaluate
    ]
    calibration = calibration_text(recipe, subject, progress)
    if calibration is not None and (recipe.refine is not None or recipe.refit == "anchored"):
        check_text(calibration.windows.input_ids, calibration.windows.bos)
    subject = within_memory(recipe, subject, calibration)
    machine = subject.machine
    if own_work is not None and machine.ranks.first:
        stack.enter_context(same_run(own_work, _identity(recipe, subject, calibration)))
    notes = list(calibration.windows.notes) if calibration else []
    notes += _plan_notes(plan, subject)
    perplexity_before = _measure(subject, texts, "evaluating the original", progress)

    # The refit aims at the dense weights; holding them here keeps them alive once their modules are replaced.
    originals = {p.name: weight(model, p) for p in decoder.projections} if recipe.chosen_refit == "always" else {}
    weighting = weighting_of(recipe)
    with calibrated(weighting, subject, calibration, progress) as weigher:
        if plan is None:
            assert calibration is not None
            planner = planner_for(recipe, subject, weigher, calibration, progress)
            plan = target_plan(recipe, subject, planner, weigher, progress)
            announce(plan)
        anchored, remarks = _anchored(recipe, calibration, plan)
        notes += remarks
        dense = _dense_twin(subject) if anchored or recipe.refine is not None else None
        pieces = _pieces(subject, recipe, plan, weighting, calibration, anchored, stack)
        entries, groups, remarks = _execute(recipe, subject, plan, weigher, pieces, progress)
    notes += remarks
    if originals and calibration is not None:
        notes += _refit(subject, plan, originals, calibration, pieces, progress)
    originals.clear()
    propagation = None
    if dense is not None and calibration is not None:
        propagation, remarks = _propagate(recipe, subject, dense, calibration, anchored, pieces, progress)
        notes += remarks
    del dense
    provenance = {"version": basis_sharing.__version__, "method": recipe.method, "ratio": plan.ratio}
    declare_compressed(model, entries, provenance)

    perplexity_after = _measure(subject, texts, "evaluating the result", progress)
    if staging is not None:
        write_model(staging, model, tokenizer, max_shard_size=machine.shard_bytes)
    executed = plan.model_copy(update={"groups": tuple(group.planned() for group in groups)})
    after = _sizes(model, decoder, executed, weight_file_bytes(staging) if staging is not None else None)
    result = CompressionResult(
        model=subject.name,
        model_fingerprint=subject.fingerprint,
        family=decoder.family.name,
        recipe=recipe,
        method=recipe.method,
        shared_roles=shared_roles,
        calibration=calibration.report() if calibration is not None else None,
        ratio_reached=1 - after.projection_parameters / before.projection_parameters,
        before=before,
        after=after,
        prediction=plan.prediction,
        groups=tuple(groups),
        perplexity_before=perplexity_before,
        perplexity_after=perplexity_after,
        notes=tuple(notes),
        versions=software_versions(),
        propagation=propagation,
    )
    if staging is not None:
        with output_errors(staging):
            result.write(staging / RESULT_FILE)
    return result


def _execute(
    recipe: Recipe, subject: Subject, plan: Plan, weigher: Weigher, folder: Path | None, progress: ProgressCallback
) -> tuple[list[dict[str, Any]], list[GroupReport], list[str]]:
    """Put the factors of a plan into the model; return their entries in ``config.json``, reports and notes."""
    entries, groups, notes = [], [], []
    with _errors_of(folder):
        ranks = subject.machine.ranks
        found = factorize(subject.model, subject.decoder, plan, weigher, folder=folder, ranks=ranks, progress=progress)
        for outcome in found:
            entries.append(install_factors(subject.model, outcome.factors))
            owner = outcome.factors.members[0]
            if outcome.not_pivoted:
                notes.append(f"{owner} is stored plainly: {outcome.not_pivoted}.")
            if outcome.ridge > 0:
                notes.append(
                    f"the second moment of {owner} is not positive definite; a ridge of {outcome.ridge:.0e} of its "
                    "mean diagonal was added."
                )
            groups.append(
                GroupReport(
                    members=outcome.factors.members,
                    rank=outcome.factors.rank,
                    form="plain" if outcome.factors.pivots is None else "pivoted",
                    loss=outcome.loss if recipe.preset.planned else None,
                    relative_loss=outcome.relative_loss,
                    ridge=outcome.ridge,
                )
            )
    return entries, groups, notes


def _plan_notes(plan: Plan | None, subject: Subject) -> list[str]:
    """Return what has to be said about a plan that was made earlier."""
    if plan is None or plan.planned_for is None or subject.source is None:
        return []
    if plan.planned_for.fingerprint in (None, subject.fingerprint):
        return []
    return [f"the plan was made for {plan.planned_for.model}, with other weights: its prediction may not hold here."]


def _identity(recipe: Recipe, subject: Subject, calibration: Calibration | None) -> dict[str, dict[str, object]]:
    """Return what makes a run the same run."""
    return {
        "the model": {"weights": subject.fingerprint},
        "the calibration text": {"tokens": calibration.windows.fingerprint if calibration is not None else None},
        "setting": {**recipe.model_dump(mode="json"), "processes": subject.machine.ranks.size},
        "software": dict(software_versions()),
    }


def _pieces(
    subject: Subject,
    recipe: Recipe,
    plan: Plan,
    weighting: Weighting,
    calibration: Calibration | None,
    anchored: bool,
    stack: ExitStack,
) -> Path | None:
    """Return the folder of the finished pieces of a plan, which goes when ``stack`` is left without an error."""
    if subject.work is None:
        return None
    measured = calibration.about(subject.collected) if calibration is not None else {}
    groups = [(group.members, group.rank, group.form) for group in plan.groups]
    mended = {"anchored": anchored, "refine": recipe.refine, "seed": recipe.seed}
    about = {**measured, **mended, "weighting": str(weighting), "groups": groups}
    folder = subject.work.shelf("factors", about)
    stack.enter_context(until_done(folder))
    return folder


def _errors_of(folder: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if folder is None else output_errors(folder)


def _check_space(staging: Path | None, parameters: int, subject: Subject, before: Sizes) -> None:
    """Make sure that a model whose projections have so many parameters fits on the disk, with what is kept of it."""
    if staging is not None:
        saved = before.projection_parameters - parameters
        size = before.bytes_in_memory - saved * subject.model.dtype.itemsize
        check_space(staging, size if subject.work is None else 2 * size)


def _refit(
    subject: Subject,
    plan: Plan,
    originals: dict[str, torch.Tensor],
    calibration: Calibration,
    folder: Path | None,
    progress: ProgressCallback,
) -> list[str]:
    """Refit all coefficients on the compressed flow; return notes."""
    stage = "calibrating on the compressed model"
    statistics = Statistics(gram=True)
    with (
        _errors_of(folder),
        swept(subject, calibration, statistics, stage, folder, progress) as moments,
    ):
        ridges = refit(subject.model, subject.decoder, plan, originals, moments, progress=progress)
    return [
        f"the refit of the coefficients of {owner} was singular; a relative ridge of {ridge:.0e} was added."
        for owner, ridge in ridges.items()
    ]


def _anchored(recipe: Recipe, calibration: Calibration | None, plan: Plan) -> tuple[bool, list[str]]:
    """Return whether coefficients will be refitted block by block, and a note where the text is too short for it.

    Raises:
        RecipeError: The text is too short, and the refit was asked for.
    """
    if recipe.chosen_refit != "anchored" or calibration is None:
        return False, []
    try:
        windows, most = calibration.windows, max((group.rank for group in plan.groups), default=0)
        check_text(windows.input_ids, windows.bos, most)
    except RecipeError as error:
        if recipe.refit == "anchored":
            raise
        return False, [f"coefficients were not refitted to the compressed flow: {error}"]
    return True, []


def _dense_twin(subject: Subject) -> Any:
    """Return the original beside the model that is going to be changed; weights read from files take no memory."""
    if subject.source is None:
        return copy.deepcopy(subject.model)
    return load_model(subject.source, subject.model.dtype)


def _propagate(
    recipe: Recipe,
    subject: Subject,
    dense: Any,
    calibration: Calibration,
    refit: bool,
    folder: Path | None,
    progress: ProgressCallback,
) -> tuple[PropagationReport, list[str]]:
    """Mend the blocks of the compressed model on the compressed flow; return what was gained, and notes."""
    ids = calibration.windows.input_ids
    with _errors_of(folder):
        schedule, gains = propagate(
            subject.model,
            dense,
            subject.decoder,
            ids,
            refit=refit,
            minutes=recipe.refine,
            dtype=calibration.dtype,
            seed=recipe.seed,
            bos=calibration.windows.bos,
            folder=folder,
            machine=subject.machine,
            progress=progress,
        )
    report = PropagationReport(
        refit=refit,
        minutes=recipe.refine,
        segments=schedule.segments,
        length=segment_length(ids.shape[1]),
        epochs=schedule.epochs,
        before=tuple(gain.before for gain in gains),
        refitted=tuple(gain.refitted for gain in gains),
        after=tuple(gain.after for gain in gains),
    )
    found = {
        "got no nearer to the original and keep what they had": [i for i, g in enumerate(gains) if g.after >= g.before],
        "diverged in training and keep their best state": [i for i, g in enumerate(gains) if g.diverged],
    }
    return report, [f"blocks that {what}: {', '.join(map(str, blocks))}." for what, blocks in found.items() if blocks]


def _measure(
    subject: Subject, texts: Sequence[EvaluationText], stage: str, progress: ProgressCallback
) -> tuple[Perplexity, ...]:
    """Return the perplexity on every text; the first of several processes measures."""
    machine, found = subject.machine, None
    if machine.ranks.first:
        found = tuple(
            measure(subject.model, text, device=machine.device, stage=stage, progress=progress) for text in texts
        )
    return machine.ranks.given_by(0, found)


def _write_card(staging: Path, source: ModelSource | None, result: CompressionResult) -> None:
    hub_id = source.given if source is not None and source.kind == "hub" else None
    with output_errors(staging):
        (staging / CARD_FILE).write_text(model_card(result, hub_id=hub_id), encoding="utf-8")


def _sizes(model: Any, decoder: Decoder, plan: Plan | None, on_disk: int | None) -> Sizes:
    return Sizes(
        parameters=parameter_count(model),
        projection_parameters=projection_parameters(model, [p.name for p in decoder.projections]),
        projection_multiplications=dense_parameters(decoder) if plan is None else plan.multiplications(decoder),
        bytes_in_memory=memory_bytes(model),
        bytes_on_disk=on_disk,
    )


def _input_paths(recipe: Recipe, source: ModelSource | None) -> list[Path]:
    """Return the local files and folders a run reads."""
    texts = [*parse_mixture(recipe.calibration), *map(parse_source, recipe.evaluate)]
    paths = [text.path for text in texts if text.path is not None]
    if source is not None and source.path is not None:
        paths.append(source.path / source.gguf_file if source.gguf_file else source.path)
    return paths
