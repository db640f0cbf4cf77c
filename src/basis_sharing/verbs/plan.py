"""What compression will cost, before anything is compressed: a plan and the curve it lies on."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from basis_sharing.calibration.collect import Calibration, calibrated, calibration_text, weighting_of
from basis_sharing.errors import PlanError
from basis_sharing.evaluation.perplexity import prepare_text
from basis_sharing.linalg.truncation import losses_under, truncate
from basis_sharing.models.family import Decoder
from basis_sharing.models.sizes import parameter_count
from basis_sharing.planning.from_recipe import fixed_plan, known_curves, planner_for
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.targets import measured_prediction, target_plan
from basis_sharing.plans.plan import Plan, dense_parameters
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.run import Subject, opened, source_of
from basis_sharing.treatments.factors.candidates import Curves
from basis_sharing.verbs.estimate import within_memory
from basis_sharing.weightings.weighting import Weigher

RATIOS = tuple(Fraction(step, 20) for step in range(1, 20, 2))


class Point(BaseModel):
    """One plan on the curve of a method.

    Attributes:
        method: Name of the method.
        ratio: Fraction of the parameters removed from the compressible projections.
        parameters: Parameters of the whole model.
        multiplications: Multiplications per token in the compressible projections.
        loss: Expected loss rise in nats per token, before any scaling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    ratio: float
    parameters: int
    multiplications: int
    loss: float


class Forecast(BaseModel):
    """A plan and what surrounds it.

    Attributes:
        plan: The plan for the target.
        dense_parameters: Parameters of the whole original model.
        dense_multiplications: Multiplications per token in its compressible projections.
        points: The curves of the planner and of the published methods.
        unrounded_loss: Expected loss of the plan without rank multiples; None where there are none.
        unshared_loss: Expected loss of the best plan of that size that shares nothing across layers; None where the
            plan does not either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    dense_parameters: int
    dense_multiplications: int
    points: tuple[Point, ...]
    unrounded_loss: float | None = None
    unshared_loss: float | None = None


def plan_model(
    model: Any,
    ratio: float | None = None,
    *,
    tokenizer: Any = None,
    baselines: Sequence[str] = ("basis-sharing", "svd-llm", "asvd", "fwsvd", "svd"),
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> Forecast:
    """Plan a compression without carrying it out.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory.
        ratio: Fraction of the parameters to remove from the compressible projections, or None and another target.
        tokenizer: The tokenizer of a model given in memory.
        baselines: Published methods whose expected loss is computed as well.
        work: Folder where what is measured is kept, and taken from by the next run with the same model and text.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        max_memory: As for :func:`~basis_sharing.verbs.compress.compress`.
        progress: Receives progress events.
        **settings: The other fields of :class:`~basis_sharing.recipe.recipe.Recipe`. With ``evaluate`` the plan is
            measured on the first text, which scales the prediction.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, the text or the target.
    """
    recipe = Recipe.create(ratio=ratio, **settings)
    if not recipe.preset.planned or recipe.plan is not None:
        raise PlanError("only method auto is planned: leave out --method and --plan.")
    source = source_of(model, tokenizer)
    machine = machine_for(device, max_memory, model)
    with opened(recipe, source, model, tokenizer, work, machine, progress) as subject:
        calibration = calibration_text(recipe, subject, progress)
        assert calibration is not None
        subject = within_memory(recipe, subject, calibration)
        weighting = weighting_of(recipe)
        with calibrated(weighting, subject, calibration, progress) as weigher:
            planner = planner_for(recipe, subject, weigher, calibration, progress)
            return _forecast(recipe, subject, calibration, planner, weigher, baselines, progress)


def _forecast(
    recipe: Recipe,
    subject: Subject,
    calibration: Calibration,
    planner: Planner,
    weigher: Weigher,
    baselines: Sequence[str],
    progress: ProgressCallback,
) -> Forecast:
    model, tokenizer, decoder = subject.model, subject.tokenizer, subject.decoder
    plan = target_plan(recipe, subject, planner, weigher, progress)
    unrounded = None
    if planner.rank_multiple > 1:
        unrounded = _expected(replace(planner, rank_multiple=1).within(plan.parameters(decoder)))
    unshared = None
    block_of = {p.name: p.block for p in decoder.projections}
    if any(len({block_of[name] for name in group.members}) > 1 for group in plan.groups):
        alone = planner.candidates.restricted(across_roles=recipe.across_roles, across_depth=False)
        unshared = _expected(replace(planner, candidates=alone).within(plan.parameters(decoder)))
    if recipe.evaluate and plan.prediction is not None and plan.prediction.scale is None:
        text = prepare_text(
            model, tokenizer, recipe.evaluate[0], windows=recipe.evaluation_windows, length=recipe.length
        )
        measured = measured_prediction(plan, subject, weigher, text, progress)
        plan = plan.model_copy(update={"prediction": measured})
    other = parameter_count(model) - dense_parameters(decoder)

    def point(method: str, plan: Plan, loss: float) -> Point:
        return Point(
            method=method,
            ratio=plan.removed_fraction(decoder),
            parameters=other + plan.parameters(decoder),
            multiplications=plan.multiplications(decoder),
            loss=loss,
        )

    points = []
    for ratio in RATIOS:
        try:
            found = planner.at_ratio(float(ratio))
        except PlanError:
            break  # the smallest plan is larger: the curve ends here
        points.append(point(recipe.method, found, _expected(found)))
    for method in baselines:
        plans = {}
        for ratio in RATIOS:
            try:
                plans[ratio] = fixed_plan(Recipe.create(ratio=float(ratio), method=method), decoder)
            except PlanError:
                break
        with known_curves(subject, weigher, calibration) as curves:
            losses = _losses(method, plans, model, decoder, weigher, curves, progress)
        points += [point(method, plans[ratio], loss) for ratio, loss in losses.items()]
    return Forecast(
        plan=plan,
        dense_parameters=other + dense_parameters(decoder),
        dense_multiplications=dense_parameters(decoder),
        points=tuple(points),
        unrounded_loss=unrounded,
        unshared_loss=unshared,
    )


def _expected(plan: Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.loss


def _losses(
    method: str,
    plans: dict[Fraction, Plan],
    model: Any,
    decoder: Decoder,
    weigher: Weigher,
    curves: Curves,
    progress: ProgressCallback,
) -> dict[Fraction, float]:
    """Return the expected loss of a published method's plans, which differ in their ranks only.

    Each method weighs errors in its own way when it chooses factors; what these factors lose is measured in the
    planner's unit, at all ranks, unless it is known. Refits are left out.
    """
    known = {p.name: p for p in decoder.projections}
    own = weigher.as_published(PRESETS[method].weighting, decoder.projections)
    totals = dict.fromkeys(plans, 0.0)
    if not plans:
        return totals
    groups = next(iter(plans.values())).groups
    ranks = [[group.rank for group in plan.groups] for plan in plans.values()]
    for done, group in enumerate(groups):
        members, key = [known[name] for name in group.members], (method, *group.members)
        lost = curves.get(key)
        if lost is None:
            found = losses_under(weigher.problem(model, members), truncate(own.problem(model, members)))
            lost = curves[key] = found.numpy()
            progress(Progress(f"predicting {method}", done + 1, len(groups), "groups"))
        for ratio, rank in zip(plans, ranks, strict=True):
            totals[ratio] += float(lost[rank[done]])
    return totals
