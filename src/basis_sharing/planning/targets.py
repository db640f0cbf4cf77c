"""From the target a person thinks in to the plan that meets it."""

import math
from statistics import stdev
from typing import Any

from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.errors import PlanError
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, measure, prepare_text
from basis_sharing.models.sizes import memory_bytes, parameter_count
from basis_sharing.planning.allocation import UnreachableError
from basis_sharing.planning.planner import Planner, Resource
from basis_sharing.plans.plan import Plan, Prediction, dense_parameters
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.run import Subject
from basis_sharing.runtime.surgery import install_factors
from basis_sharing.treatments.factors.solve import factorize
from basis_sharing.weightings.weighting import Weigher

_MOST_EXTRAPOLATION = 3.0
_TRIAL_WINDOWS = 8


def target_plan(
    recipe: Recipe, subject: Subject, planner: Planner, weigher: Weigher, progress: ProgressCallback
) -> Plan:
    """Return the plan that meets the target of a recipe.

    Raises:
        PlanError: No plan does; says what the best can.
    """
    if recipe.max_perplexity_increase is None:
        return plan_for(recipe, subject.model, planner)
    text = prepare_text(
        subject.model,
        subject.tokenizer,
        recipe.evaluate[0] if recipe.evaluate else DEFAULT_TEXT,
        windows=recipe.evaluation_windows or _TRIAL_WINDOWS,
        length=recipe.length,
    )
    return plan_for_increase(recipe.max_perplexity_increase, subject, planner, weigher, text, progress)


def plan_for(recipe: Recipe, model: Any, planner: Planner) -> Plan:
    """Return the plan for a target in size or multiplications.

    Raises:
        PlanError: The target cannot be met; says what the best can.
    """
    dense = dense_parameters(planner.decoder)
    resource: Resource = "parameters"
    # The amount that is limited = fixed + unit x the resource that the projections need.
    if recipe.ratio is not None:
        name, limit, fixed, unit = "ratio", 1 - recipe.ratio, 0.0, 1 / dense
    elif recipe.max_parameters is not None:
        name, limit, unit = "max-parameters", recipe.max_parameters, 1
        fixed = parameter_count(model) - dense
    elif recipe.max_bytes is not None:
        name, limit, unit = "max-bytes", recipe.max_bytes, model.dtype.itemsize
        fixed = memory_bytes(model) - dense * unit + _most_index_bytes(planner)
    else:
        assert recipe.max_flops is not None
        name, limit, unit, resource = "max-flops", recipe.max_flops, 2, "multiplications"
        fixed = unit * head_multiplications(model)
    shown = f"--{name} {getattr(recipe, name.replace('-', '_')):,}"
    try:
        plan = planner.within((limit - fixed) / unit, resource)
    except UnreachableError as error:
        least = fixed + unit * error.least
        best = f"{1 - least:.4f}" if name == "ratio" else f"{least:,.0f}"
        raise PlanError(
            f"{shown} cannot be met: the best possible, with the lowest ranks everywhere, is {best}."
        ) from None
    if not plan.groups:
        raise PlanError(f"{shown} is met by the original already: there is nothing to compress.")
    return plan


def _most_index_bytes(planner: Planner) -> int:
    """Return the most bytes that pivoted groups need to know which inputs are pivots: an int32 for every input."""
    return 4 * sum(p.d_in for p in planner.decoder.projections) if planner.form == "pivoted" else 0


def head_multiplications(model: Any) -> int:
    """Return the multiplications per token of the output head."""
    head = model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())


def plan_for_increase(
    increase: float,
    subject: Subject,
    planner: Planner,
    weigher: Weigher,
    text: EvaluationText,
    progress: ProgressCallback,
) -> Plan:
    """Return the smallest plan whose perplexity is expected to rise by at most the fraction ``increase``.

    One plan is measured to scale the prediction, at the loss that is allowed if the prediction is right as it is; a
    prediction is not trusted beyond three times the loss of what was measured.

    Raises:
        PlanError: The target cannot be met.
    """
    allowed = math.log1p(increase)
    trial = planner.within_loss(allowed)
    measured = measured_prediction(trial, subject, weigher, text, progress)
    assert measured.scale is not None
    plan = planner.within_loss(min(allowed / measured.scale, _MOST_EXTRAPOLATION * measured.loss))
    assert plan.prediction is not None
    return plan.model_copy(update={"prediction": measured.model_copy(update={"loss": plan.prediction.loss})})


def measured_prediction(
    plan: Plan, subject: Subject, weigher: Weigher, text: EvaluationText, progress: ProgressCallback
) -> Prediction:
    """Return the prediction of a plan, scaled by the loss rise that its factors really cause on a text.

    The model's projections are replaced by factorized ones, and put back.
    """
    assert plan.prediction is not None
    model, decoder, machine = subject.model, subject.decoder, subject.machine

    def measured(stage: str) -> Perplexity:
        return measure(model, text, device=machine.device, stage=f"measuring one plan: {stage}", progress=progress)

    dense = measured("original")
    originals = {name: model.get_submodule(name) for group in plan.groups for name in group.members}
    try:
        for outcome in factorize(model, decoder, plan, weigher, ranks=machine.ranks, progress=progress):
            install_factors(model, outcome.factors)
        compressed = measured("compressed")
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
    rises = [after - before for after, before in zip(compressed.window_nats, dense.window_nats, strict=True)]
    rise = sum(rises) / len(rises)
    error = stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else None
    scale = max(rise, 1e-6) / plan.prediction.loss
    return Prediction(
        loss=plan.prediction.loss,
        scale=scale,
        scale_error=None if error is None else error / plan.prediction.loss,
        text=text.source,
    )
