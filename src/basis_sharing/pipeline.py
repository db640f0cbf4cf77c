"""The story of one compression, from a model to a smaller one."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import basis_sharing
from basis_sharing.calibrate import Calibration, calibrated, calibration_text, swept, weighting_of
from basis_sharing.calibration.corpora import parse_source
from basis_sharing.calibration.moments import Statistics
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.checkpoint.writer import check_space, output_errors, publish, reserve, write_model
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, measure, prepare_text
from basis_sharing.factorization.execute import factorize, refit
from basis_sharing.layers.surgery import declare_compressed, install_factors, projection_parameters
from basis_sharing.models.decoder import describe, weight, with_roles
from basis_sharing.models.families import FAMILIES
from basis_sharing.models.family import ROLES, Decoder
from basis_sharing.models.sizes import memory_bytes, parameter_count, weight_file_bytes
from basis_sharing.models.source import (
    ModelSource,
    dtype_name,
    fingerprint,
    load_model,
    load_tokenizer,
    named_dtype,
    refuse_compressed,
    resolve,
    stored_bytes,
)
from basis_sharing.plan import Plan, PlannedFor, dense_parameters, structure_of
from basis_sharing.planning.candidate_files import read_candidates, write_candidates
from basis_sharing.planning.candidates import Candidates, find_candidates
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.uniform import uniform_plan
from basis_sharing.progress import Progress, ProgressCallback, silent
from basis_sharing.recipe import Recipe
from basis_sharing.results.base import software_versions
from basis_sharing.results.card import CARD_FILE, model_card
from basis_sharing.results.compression import RESULT_FILE, CompressionResult, GroupReport
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.targets import plan_for, plan_for_increase
from basis_sharing.weighting import Weigher
from basis_sharing.work import WorkFolder

_TRIAL_WINDOWS = 8


def compress(
    model: Any,
    ratio: float | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    work: str | Path | None = None,
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
        work: Folder where what is measured is kept, and taken from by the next run with the same model and text.
        progress: Receives progress events.
        on_plan: Receives the plan before it is executed.
        **settings: The other fields of :class:`~basis_sharing.recipe.Recipe`, e.g. ``method="svd-llm"``.

    Returns:
        The compressed model, ready to use and to ``save_pretrained``, and the result.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, the text or the output; see
            :mod:`basis_sharing.errors`.
    """
    recipe = Recipe.create(ratio=ratio, **settings)
    source = source_of(model, tokenizer)
    kept = None if work is None else Path(work)
    if output is None:
        return _run(recipe, source, model, tokenizer, None, kept, progress, on_plan)
    with reserve(Path(output), overwrite=overwrite, inputs=_input_paths(recipe, source)) as staging:
        compressed, result = _run(recipe, source, model, tokenizer, staging, kept, progress, on_plan)
        _write_card(staging, source, result)
        publish(staging, Path(output))
    return compressed, result


def source_of(model: Any, tokenizer: Any) -> ModelSource | None:
    """Return where a model comes from, None for one in memory; refuse what cannot be compressed.

    Raises:
        BasisSharingError: The model is not there, compressed already, or in memory without its tokenizer.
    """
    if isinstance(model, (str, Path)):
        source = resolve(model)
        refuse_compressed(source)
        return source
    if tokenizer is None:
        raise RecipeError("a model given in memory needs its tokenizer: pass tokenizer=...")
    if getattr(model.config, "quantization_config", None):
        raise ModelError("the model given in memory is already compressed or quantized: give the original instead.")
    return None


def _run(
    recipe: Recipe,
    source: ModelSource | None,
    model: Any,
    tokenizer: Any,
    staging: Path | None,
    work: Path | None,
    progress: ProgressCallback,
    on_plan: Callable[[Plan], None] | None,
) -> tuple[Any, CompressionResult]:
    """Compress, and write into ``staging`` if there is one."""
    given = Plan.read(recipe.plan) if recipe.plan is not None else None
    if given is not None:
        recipe = recipe.model_copy(update={"method": given.method, "gradients": given.gradients})
    model, tokenizer = loaded(recipe, source, model, tokenizer, progress)
    work_folder = work_folder_for(work, source, model)
    training = model.training
    model.eval()
    whole = describe(model)
    decoder = with_roles(whole, recipe.roles)
    shared_roles = shared_roles_of(recipe, decoder)
    plan = given if given is not None or recipe.preset.planned else fixed_plan(recipe, decoder)
    before = _sizes(model, decoder, None, stored_bytes(source) if source is not None else None)

    def announce(plan: Plan) -> None:
        plan.check(whole)
        _check_space(staging, plan, model, decoder, before)
        count = len(plan.groups)
        progress(Progress(f"planned, {plan.removed_fraction(decoder):.2%} less", count, count, "groups"))
        if on_plan is not None:
            on_plan(plan)

    if plan is not None:
        announce(plan)
    texts = [
        prepare_text(model, tokenizer, text, windows=recipe.evaluation_windows, length=recipe.length)
        for text in recipe.evaluate
    ]
    calibration = calibration_text(recipe, model, tokenizer, progress)
    notes = list(calibration.windows.notes) if calibration else []
    notes += _plan_notes(plan, source)
    perplexity_before = _measure(model, texts, "evaluating the original", progress)

    # The refit aims at the dense weights; holding them here keeps them alive once their modules are replaced.
    originals = {p.name: weight(model, p) for p in decoder.projections} if recipe.refits else {}
    groups, entries = [], []
    # What is kept is of all projections: it serves any choice of roles.
    collected = decoder if work_folder is None else whole
    with calibrated(weighting_of(recipe), model, collected, calibration, progress, work_folder) as weigher:
        if plan is None:
            candidates = candidates_for(recipe, model, decoder, weigher, calibration, progress, work_folder)
            planner = planner_for(recipe, source, model, decoder, candidates, structure_of(whole))
            plan = target_plan(recipe, model, tokenizer, planner, weigher, progress)
            announce(plan)
        predicts = recipe.preset.planned
        for outcome in factorize(model, decoder, plan, weigher, progress=progress):
            entries.append(install_factors(model, outcome.factors))
            if outcome.not_pivoted:
                notes.append(f"{outcome.factors.members[0]} is stored plainly: {outcome.not_pivoted}.")
            groups.append(
                GroupReport(
                    members=outcome.factors.members,
                    rank=outcome.factors.rank,
                    form="plain" if outcome.factors.pivots is None else "pivoted",
                    loss=outcome.loss if predicts else None,
                    relative_loss=outcome.relative_loss,
                    ridge=outcome.ridge,
                )
            )
    notes += [
        f"the second moment of {group.members[0]} is not positive definite; a ridge of {group.ridge:.0e} of its mean "
        "diagonal was added."
        for group in groups
        if group.ridge > 0
    ]
    if recipe.refits and calibration is not None:
        notes += _refit(model, decoder, plan, originals, calibration, progress)
    originals.clear()
    provenance = {"version": basis_sharing.__version__, "method": recipe.method, "ratio": plan.ratio}
    declare_compressed(model, entries, provenance)

    perplexity_after = _measure(model, texts, "evaluating the result", progress)
    if staging is not None:
        write_model(staging, model, tokenizer)
    executed = plan.model_copy(update={"groups": tuple(group.planned() for group in groups)})
    after = _sizes(model, decoder, executed, weight_file_bytes(staging) if staging is not None else None)
    result = CompressionResult(
        model=source.given if source is not None else type(model).__name__,
        model_fingerprint=fingerprint(source) if source is not None else None,
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
    )
    model.train(training)
    if staging is not None:
        with output_errors(staging):
            result.write(staging / RESULT_FILE)
    return model, result


def loaded(
    recipe: Recipe, source: ModelSource | None, model: Any, tokenizer: Any, progress: ProgressCallback
) -> tuple[Any, Any]:
    """Return the model and its tokenizer, loaded if they are not in memory."""
    if source is None:
        return model, tokenizer
    progress(Progress("loading", 0, 1, "model"))
    tokenizer, model = load_tokenizer(source), load_model(source, named_dtype(recipe.dtype))
    progress(Progress("loading", 1, 1, "model"))
    return model, tokenizer


def fixed_plan(recipe: Recipe, decoder: Decoder, ratio: Fraction | None = None) -> Plan:
    """Return the plan of a published method: the same rank for every group of a role."""
    ratio = recipe.exact_ratio if ratio is None else ratio
    assert ratio is not None
    return uniform_plan(
        decoder,
        method=recipe.method,
        ratio=ratio,
        group_size=recipe.group_size or recipe.preset.group_size,
        shared_roles=shared_roles_of(recipe, decoder),
        form=recipe.stored_form,
    )


def work_folder_for(path: Path | None, source: ModelSource | None, model: Any) -> WorkFolder | None:
    """Return the work folder of a model.

    Raises:
        RecipeError: The model is in memory, so that nothing tells whether a later one is the same.
        OutputError: There is a file of that name.
    """
    if path is None:
        return None
    if source is None:
        raise RecipeError("what is measured on a model given in memory cannot be kept: give its folder, or no work=.")
    return WorkFolder(path, fingerprint(source), dtype_name(model.dtype))


def candidates_for(
    recipe: Recipe,
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    calibration: Calibration | None,
    progress: ProgressCallback,
    work: WorkFolder | None,
) -> Candidates:
    """Measure all candidates of a model, or take them from its work folder."""

    def find() -> Candidates:
        return find_candidates(
            model,
            decoder,
            weigher,
            across_roles=recipe.across_roles,
            across_depth=recipe.across_depth,
            progress=progress,
        )

    if work is None or calibration is None:
        return find()
    about = {
        **calibration.about(decoder),
        "weighting": str(weigher.weighting),
        "across_roles": recipe.across_roles,
        "across_depth": recipe.across_depth,
    }
    folder = work.measured("candidates", about, lambda empty: write_candidates(find(), empty / "candidates.npz"))
    return read_candidates(folder / "candidates.npz", decoder)


def planner_for(
    recipe: Recipe, source: ModelSource | None, model: Any, decoder: Decoder, candidates: Candidates, structure: str
) -> Planner:
    """Return the planner of a recipe."""
    return Planner(
        decoder=decoder,
        candidates=candidates,
        method=recipe.method,
        gradients=recipe.gradients,
        form=recipe.stored_form,
        rank_multiple=recipe.rank_multiple,
        planned_for=PlannedFor(
            model=source.given if source is not None else type(model).__name__,
            fingerprint=fingerprint(source) if source is not None else None,
            structure=structure,
        ),
    )


def target_plan(
    recipe: Recipe, model: Any, tokenizer: Any, planner: Planner, weigher: Weigher, progress: ProgressCallback
) -> Plan:
    """Return the plan that meets the target of a recipe.

    Raises:
        PlanError: No plan does; says what the best can.
    """
    if recipe.max_perplexity_increase is None:
        return plan_for(recipe, model, planner)
    text = prepare_text(
        model,
        tokenizer,
        recipe.evaluate[0] if recipe.evaluate else DEFAULT_TEXT,
        windows=recipe.evaluation_windows or _TRIAL_WINDOWS,
        length=recipe.length,
    )
    return plan_for_increase(recipe.max_perplexity_increase, model, planner, weigher, text, progress)


def _plan_notes(plan: Plan | None, source: ModelSource | None) -> list[str]:
    """Return what has to be said about a plan that was made earlier."""
    if plan is None or plan.planned_for is None or source is None:
        return []
    if plan.planned_for.fingerprint in (None, fingerprint(source)):
        return []
    return [f"the plan was made for {plan.planned_for.model}, with other weights: its prediction may not hold here."]


def _check_space(staging: Path | None, plan: Plan, model: Any, decoder: Decoder, before: Sizes) -> None:
    if staging is not None:
        saved = before.projection_parameters - plan.parameters(decoder)
        check_space(staging, before.bytes_in_memory - saved * model.dtype.itemsize)


def _refit(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    originals: dict[str, torch.Tensor],
    calibration: Calibration,
    progress: ProgressCallback,
) -> list[str]:
    """Refit all coefficients on the compressed flow; return notes."""
    stage = "calibrating on the compressed model"
    with swept(model, decoder, calibration, Statistics(gram=True), stage, progress) as moments:
        ridges = refit(model, decoder, plan, originals, moments, progress=progress)
    return [
        f"the refit of the coefficients of {owner} was singular; a relative ridge of {ridge:.0e} was added."
        for owner, ridge in ridges.items()
    ]


def _measure(
    model: Any, texts: Sequence[EvaluationText], stage: str, progress: ProgressCallback
) -> tuple[Perplexity, ...]:
    return tuple(measure(model, text, stage=stage, progress=progress) for text in texts)


def shared_roles_of(recipe: Recipe, decoder: Decoder) -> tuple[str, ...]:
    """Return the roles that share: as asked, by the named family's table, or by the model's own."""
    present = {p.role for p in decoder.projections}
    if (recipe.group_size or recipe.preset.group_size) == 1:
        return ()
    if recipe.share is None:
        return tuple(role for role in decoder.family.shared_roles if role in present)
    tables = {family.name: family.shared_roles for family in FAMILIES}
    roles = [role for name in recipe.share for role in tables.get(name, (name,))]
    for role in roles:
        if role not in ROLES:
            raise RecipeError(
                f"unknown role {role!r} to share: name roles of {', '.join(ROLES)}, or a family of {', '.join(tables)}."
            )
    return tuple(role for role in ROLES if role in roles and role in present)


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
    specs = [recipe.calibration, *recipe.evaluate]
    paths = [parsed.path for parsed in map(parse_source, specs) if parsed.path is not None]
    if source is not None and source.path is not None:
        paths.append(source.path / source.gguf_file if source.gguf_file else source.path)
    return paths
