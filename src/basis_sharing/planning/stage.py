"""The stage of a run that makes its plan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from basis_sharing.calibration.text import CalibrationText
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.costs.base import Cost
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, prepare_text
from basis_sharing.planning.clock import Clock, TimeLimit
from basis_sharing.planning.curves import stored_curves
from basis_sharing.planning.multiples import Multiples, multiples_for
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.space import search_space
from basis_sharing.planning.targets import costs_of, plan_for, plan_for_increase, with_widths
from basis_sharing.planning.trial import measured_prediction
from basis_sharing.plans.plan import Plan, PlannedFor, PredictedSpeed, Prediction, structure_of
from basis_sharing.recipe.evaluation import Evaluation
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.speed import Speed
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
        speed: The machine that the model is made for.
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
        speed: Speed,
        evaluation: Evaluation,
        length: int | None,
        collect: Collect,
        *,
        given: Plan | None = None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self._planning, self._target, self._speed = planning, target, speed
        self._evaluation, self._length = evaluation, length
        self._collect, self._given, self._on_plan = collect, given, on_plan
        if given is not None:
            self.plan = given

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the time and memory that measuring the candidates needs; nothing if the plan is given."""
        if self._given is None:
            weighting = self._collect.kind
            seconds = sum(
                TREATMENTS[name].planning_seconds(shapes, self._planning) for name in self._planning.offered_treatments
            )
            memory = shapes.solving_memory(whitened=weighting.whitens, outputs=weighting.in_nats)
            yield Needs("planning", seconds, memory)

    def run(self, run: Run) -> None:
        """Make the plan if none is given."""
        if self._given is not None:
            return
        text = self._collect.text
        assert text is not None
        clock = Clock.of(self._speed, run)
        multiples = self.multiples(run, clock)
        with known_curves(run, self._collect.weighting, text) as curves:
            planner = self.planner(run, curves, multiples)
            self.plan = self.meeting_the_target(planner, run, clock)
            # A limit on time is kept by aligned ranks only, so there is no plan without multiples to compare with.
            if multiples.rounds and not self._target.limits_time:
                every_rank = self.planner(run, curves, None)
                itemsize = run.model.dtype.itemsize
                run.notes.append(cost_of_multiples(self.plan, every_rank, multiples, itemsize))
        run.notes.extend([*clock.notes, *slower_than_the_original(self.plan)])
        self._on_plan(self.plan)

    def multiples(self, run: Run, clock: Clock) -> Multiples:
        """Return what ranks are multiples of: as the settings say, and few enough to be timed if time is limited."""
        multiples = multiples_for(self._planning, run.decoder, clock.products)
        return multiples.bounded() if self._target.limits_time else multiples

    def planner(self, run: Run, curves: Curves, multiples: Multiples | None) -> Planner:
        """Return the planner, after measuring the candidates that are not in ``curves``; None: of every rank."""
        cost = costs_of(self._target, run.model)[0]
        planning = with_widths(self._planning, self._target, run.model, run.decoder)
        return planner_for(planning, cost, run, self._collect, curves, multiples)

    def meeting_the_target(self, planner: Planner, run: Run, clock: Clock) -> Plan:
        """Return the plan that meets the target, with its expected speed.

        Raises:
            PlanError: No plan meets the target; says what the best possible is.
        """
        limits = clock.limits(self._target, self._speed)
        clock.measure(planner.space, [limit.cost for limit in limits])

        def within(planner: Planner) -> Plan:
            return self._within(limits, planner, run)

        plan = clock.told(clock.settled(planner, within) if limits else within(planner))
        assert plan.prediction is not None
        run.notes.extend(missed(plan.prediction.speeds, limits))
        return plan

    def _within(self, limits: Sequence[TimeLimit], planner: Planner, run: Run) -> Plan:
        """Return the plan for the target that keeps limits on time."""
        if self._target.max_perplexity_increase is None:
            return plan_for(self._target, self._planning, run.model, planner, limits)
        text = self._trial_text(run)
        weighting = self._collect.weighting

        def measured(plan: Plan) -> Prediction:
            return measured_prediction(plan, run, weighting, text)

        return plan_for_increase(self._target, self._planning, run.model, planner, limits, measured)

    def _trial_text(self, run: Run) -> EvaluationText:
        evaluation = self._evaluation
        return prepare_text(
            run.model,
            run.tokenizer,
            evaluation.evaluate[0] if evaluation.evaluate else DEFAULT_TEXT,
            windows=evaluation.evaluation_windows or _TRIAL_WINDOWS,
            length=self._length,
        )


def cost_of_multiples(plan: Plan, every_rank: Planner, multiples: Multiples, itemsize: int) -> str:
    """Return a sentence on what the multiples of ranks cost.

    Args:
        plan: The plan.
        every_rank: The planner that may choose any rank.
        multiples: The multiples.
        itemsize: Bytes of a number of the model.
    """
    unrounded = every_rank.as_small_as(plan, itemsize)
    assert plan.prediction is not None
    assert unrounded.prediction is not None
    price = plan.prediction.loss - unrounded.prediction.loss
    return f"Ranks in multiples of {multiples} cost {price:.4f} nats per token (before scaling) in the same size."


def missed(speeds: Sequence[PredictedSpeed], limits: Sequence[TimeLimit]) -> list[str]:
    """Return a sentence for every limit on time that the last, thorough measurement says is missed by over 1 %."""
    seconds = {speed.phase: speed.seconds for speed in speeds}
    return [
        f"{limit.name} may be missed: measured again, the plan takes {found / limit.seconds - 1:.1%} longer than that."
        for limit in limits
        if (found := seconds[limit.cost.workload.phase]) > 1.01 * limit.seconds
    ]


def slower_than_the_original(plan: Plan) -> list[str]:
    """Return a sentence for every phase in which a plan is expected to be slower than the original."""
    speeds = () if plan.prediction is None else plan.prediction.speeds
    return [
        f"{speed.phase} is expected to be slower than the original's, {speed.speed:.2f} x its speed, which the target "
        f"allows; --min-speedup 1 --phase {speed.phase} beside it does not."
        for speed in speeds
        if speed.speed < 1
    ]


def planner_for(
    planning: Planning, cost: Cost, run: Run, collect: Collect, curves: Curves, multiples: Multiples | None = None
) -> Planner:
    """Return the planner of a run's model, after measuring the candidates that are not in ``curves``."""
    if multiples is None:
        planning = planning.model_copy(update={"rank_multiple": 1})
    search = Search(
        model=run.model,
        decoder=run.decoder,
        weighting=collect.weighting,
        cost=cost,
        planning=planning,
        curves=curves,
        processes=run.processes,
        progress=run.progress,
        multiples=multiples,
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
