"""Measurement of one plan on a text, to scale the expected losses of plans."""

from statistics import stdev

from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.plans.plan import Plan, Prediction
from basis_sharing.run.run import Run
from basis_sharing.treatments.base import TREATMENTS
from basis_sharing.treatments.execute import execute
from basis_sharing.weightings.base import Weighting


def measured_prediction(plan: Plan, run: Run, weighting: Weighting, text: EvaluationText) -> Prediction:
    """Return the prediction of a plan, scaled by its measured loss rise on a text.

    The plan is carried out in the model for the measurement, and the original modules are restored.
    """
    assert plan.prediction is not None
    model, machine = run.model, run.machine

    def nats(stage: str) -> tuple[float, ...]:
        stage = f"measuring one plan: {stage}"
        return measure(model, text, device=machine.device, stage=stage, progress=run.progress).window_nats

    dense = nats("original")
    originals = {name: model.get_submodule(name) for entry in plan.entries for name in entry.members}
    outcomes = execute(model, run.decoder, plan, weighting, processes=run.processes, progress=run.progress)
    try:
        for outcome in outcomes:
            TREATMENTS[outcome.entry.kind].install(model, outcome)
        compressed = nats("compressed")
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
    rises = [after - before for after, before in zip(compressed, dense, strict=True)]
    rise = sum(rises) / len(rises)
    error = stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else None
    return Prediction(
        loss=plan.prediction.loss,
        scale=max(rise, 1e-6) / plan.prediction.loss,
        scale_error=None if error is None else error / plan.prediction.loss,
        text=text.source,
    )
