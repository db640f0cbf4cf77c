"""The stage of a run that makes its plan."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from basis_sharing.calibration.text import CalibrationText
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.costs.base import Cost
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, prepare_text
from basis_sharing.planning.curves import stored_curves
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import search_space
from basis_sharing.planning.targets import costs_of, plan_for, plan_for_increase
from basis_sharing.planning.trial import measured_prediction
from basis_sharing.plans.plan import Plan, PlannedFor, structure_of
from basis_sharing.recipe.evaluation import Evaluation
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.target import Target
from basis_sharing.run.files import output_errors
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.treatments.base import TREATMENTS, Curves, Search
from basis_sharing.weightings.base import Weighting
from basis_sharing.weightings.stage import Collect

_TRIAL_WINDOWS = 8


class MakePlan:
    """Measure candidates, and make the plan that meets the target.

    Args:
        planning: Settings of the planner.
        target: The target.
        evaluation: Evaluation settings; a target in perplexity is measured on their first text.
        length: Tokens per window of that text; None: the default length.
        collect: The stage that collects the statistics.
        given: A plan that was made earlier or follows from the method; no candidates are then measured.
        on_plan: Called with the plan when it has been made.

    Attributes:
        plan: The plan.
    """

    plan: Plan

    def __init__(
        self,
        planning: Planning,
        target: Target,
        evaluation: Evaluation,
        length: int | None,
        collect: Collect,
        *,
        given: Plan | None = None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self._planning, self._target, self._evaluation, self._length = planning, target, evaluation, length
        self._collect, self._given, self._on_plan = collect, given, on_plan
        if given is not None:
            self.plan = given

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the time and memory that measuring the candidates needs; nothing if the plan is given."""
        if self._given is None:
            weighting = self._collect.kind
            seconds = sum(
                TREATMENTS[name].planning_seconds(shapes, self._planning) for name in self._planning.treatments
            )
            memory = shapes.solving_memory(whitened=weighting.whitens, outputs=weighting.in_nats)
            yield Needs("planning", seconds, memory)

    def run(self, run: Run) -> None:
        """Make the plan if none is given."""
        if self._given is not None:
            return
        text = self._collect.text
        assert text is not None
        with known_curves(run, self._collect.weighting, text) as curves:
            planner = planner_for(self._planning, costs_of(self._target, run.model)[0], run, self._collect, curves)
        self.plan = self.meeting_the_target(planner, run)
        self._on_plan(self.plan)

    def meeting_the_target(self, planner: Planner, run: Run) -> Plan:
        """Return the plan that meets the target.

        Raises:
            PlanError: No plan meets the target; says what the best possible is.
        """
        increase = self._target.max_perplexity_increase
        if increase is None:
            return plan_for(self._target, run.model, planner)
        text = self._trial_text(run)
        weighting = self._collect.weighting
        return plan_for_increase(increase, planner, lambda plan: measured_prediction(plan, run, weighting, text))

    def _trial_text(self, run: Run) -> EvaluationText:
        evaluation = self._evaluation
        return prepare_text(
            run.model,
            run.tokenizer,
            evaluation.evaluate[0] if evaluation.evaluate else DEFAULT_TEXT,
            windows=evaluation.evaluation_windows or _TRIAL_WINDOWS,
            length=self._length,
        )


def planner_for(planning: Planning, cost: Cost, run: Run, collect: Collect, curves: Curves) -> Planner:
    """Return the planner of a run's model, after measuring the candidates that are not in ``curves``."""
    search = Search(
        model=run.model,
        decoder=run.decoder,
        weighting=collect.weighting,
        cost=cost,
        planning=planning,
        curves=curves,
        processes=run.processes,
        progress=run.progress,
    )
    return Planner(
        decoder=run.decoder,
        space=search_space(search),
        method=planning.method,
        gradients=planning.gradients,
        planned_for=PlannedFor(model=run.name, fingerprint=run.fingerprint, structure=structure_of(run.whole)),
    )


@contextmanager
def known_curves(run: Run, weighting: Weighting, text: CalibrationText) -> Iterator[Curves]:
    """Yield the cache of loss curves of a model and a text, which is empty and not saved without a work folder.

    Raises:
        OutputError: The disk of the work folder is full or fails.
    """
    if run.work is None:
        yield {}
        return
    folder = run.work.parts_folder("curves", {**text.about(run.collected), "weighting": weighting.name})
    with output_errors(folder), stored_curves(folder) as curves:
        yield curves
