"""``plan``: the plan of a compression and its expected loss, without carrying it out."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Unpack

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.calibration.text import calibration_text
from basis_sharing.costs.base import shapes_of
from basis_sharing.errors import PlanError
from basis_sharing.evaluation.perplexity import prepare_text
from basis_sharing.models.sizes import parameter_count
from basis_sharing.planning.clock import Clock, check_machine
from basis_sharing.planning.planner import Planner
from basis_sharing.planning.published import published_plan
from basis_sharing.planning.stage import MakePlan, known_curves, slower_than_the_original
from basis_sharing.planning.targets import with_widths
from basis_sharing.planning.trial import measured_prediction
from basis_sharing.plans.plan import Plan, dense_multiplications, dense_parameters, spans_blocks
from basis_sharing.recipe.planning import Planning
from basis_sharing.recipe.recipe import Recipe, RecipeKeywords, as_recipe
from basis_sharing.results.forecast import BitPoint, Forecast, Point, RoleForecast
from basis_sharing.run.machine import machine_for
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.run import Run, opened, source_of
from basis_sharing.run.stages import least_memory, needs_of
from basis_sharing.treatments.base import Curves
from basis_sharing.treatments.factors.published import published_losses
from basis_sharing.verbs.plan_by_bytes import curves_by_bytes, loss_without_ranks
from basis_sharing.verbs.stages import shapes_of_run
from basis_sharing.weightings.base import WEIGHTINGS
from basis_sharing.weightings.stage import Collect

SPEEDS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
RATIOS = tuple(Fraction(step, 20) for step in range(1, 20, 2))
BASELINES = ("basis-sharing", "svd-llm", "asvd", "fwsvd", "svd")


def plan(
    model: Any,
    recipe: Recipe | float | str | None = None,
    *,
    tokenizer: Any = None,
    baselines: Sequence[str] = BASELINES,
    work: str | Path | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    progress: ProgressCallback = silent,
    **settings: Unpack[RecipeKeywords],
) -> Forecast:
    """Plan a compression without carrying it out.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory.
        recipe: A recipe, or the ratio: the fraction of the parameters to remove from the compressible projections.
        tokenizer: The tokenizer of a model given in memory.
        baselines: Published methods whose expected loss is computed as well.
        work: Folder in which measurements are kept for the next run with the same model and text.
        device: As for :func:`~basis_sharing.verbs.compress.compress`.
        max_memory: As for :func:`~basis_sharing.verbs.compress.compress`.
        progress: Receives progress events.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe`. With ``evaluate`` the plan is measured on
            the first text to scale the prediction.

    Returns:
        The plan, and curves of expected loss against size.

    Raises:
        BasisSharingError: The settings, the model, the text or the target cannot be used.

    Example:
        >>> import basis_sharing
        >>> forecast = basis_sharing.plan("./llama", ratio=0.2)
        >>> forecast.plan.prediction.nats_per_token > 0
        True
    """
    recipe = as_recipe(recipe, settings)
    if not recipe.preset.planned or recipe.plan is not None:
        raise PlanError("only method auto is planned: leave out --method and --plan.")
    parse_texts(recipe.calibration, recipe.evaluate)
    check_machine(recipe)
    source = source_of(model, tokenizer)
    machine = machine_for(device, max_memory, model)
    with opened(
        recipe, model, source=source, tokenizer=tokenizer, work=work, machine=machine, progress=progress
    ) as run:
        text = calibration_text(recipe, run)
        collect = Collect(WEIGHTINGS[recipe.weighting], text)
        make = MakePlan(recipe, recipe, recipe, recipe, recipe.length, collect)
        run = run.within(least_memory(needs_of([collect, make], shapes_of_run(recipe, run, text))))
        collect.run(run)
        with known_curves(run, collect.weighting, text) as curves:
            return _Forecasting(recipe, run, collect, make, curves).forecast(baselines)


class _Forecasting:
    """One forecast for an opened model whose statistics are collected."""

    def __init__(self, recipe: Recipe, run: Run, collect: Collect, make: MakePlan, curves: Curves) -> None:
        self._recipe, self._run, self._collect, self._make, self._curves = recipe, run, collect, make, curves
        self._other = parameter_count(run.model) - dense_parameters(run.decoder)
        self._clock = Clock.of(recipe, run)
        self._multiples = make.multiples(run, self._clock)

    def forecast(self, baselines: Sequence[str]) -> Forecast:
        """Return the plan for the target, and the curves of the planner and of published methods."""
        decoder = self._run.decoder
        planner = self._make.planner(self._run, self._curves, self._multiples)
        plan = self._make.meeting_the_target(planner, self._run, self._clock)
        rounded = self._multiples.rounds
        # A limit on time is kept by aligned ranks only, so there is no plan without multiples to compare with.
        unrounded = self._unrounded(plan) if rounded and not self._recipe.limits_time else None
        unshared = None
        if any(spans_blocks(entry, decoder) for entry in plan.entries):
            unshared = self._in_the_same_size(planner.without_sharing_across_depth(), plan)
        plan = self._measured(plan)
        points = (*self._curve(planner), *(point for name in baselines for point in self._baseline(name)))
        speed_points = tuple(self._speed_curve())
        bit_points: list[BitPoint] = []
        if self._recipe.limits_bytes:
            planning = with_widths(self._recipe, self._recipe, self._run.model, decoder)
            bit_points = curves_by_bytes(planner, planning, self._run, self._collect.weighting, self._curves)
        return Forecast(
            plan=plan,
            dense_parameters=self._other + dense_parameters(decoder),
            dense_multiplications=dense_multiplications(decoder),
            points=points,
            speed_points=speed_points,
            bit_points=tuple(bit_points),
            roles=tuple(self._roles(plan)),
            rank_multiples=str(self._multiples) if rounded else None,
            unrounded_loss=unrounded,
            unranked_loss=loss_without_ranks(plan, planner, self._run) if bit_points else None,
            unshared_loss=unshared,
            notes=(*self._run.notes, *self._clock.notes, *slower_than_the_original(plan)),
        )

    def _unrounded(self, plan: Plan) -> float:
        """Return the expected loss of the best plan of the same size without rank multiples."""
        return self._in_the_same_size(self._make.planner(self._run, self._curves, None), plan)

    def _in_the_same_size(self, planner: Planner, plan: Plan) -> float:
        """Return the expected loss of a planner's plan of the size of ``plan``."""
        return _expected(planner.as_small_as(plan, self._run.model.dtype.itemsize))

    def _measured(self, plan: Plan) -> Plan:
        """Return the plan with its prediction scaled by a measurement, if a text is given and none was made yet."""
        recipe, run = self._recipe, self._run
        if not recipe.evaluate or plan.prediction is None or plan.prediction.scale is not None:
            return plan
        windows, length = recipe.evaluation_windows, recipe.length
        text = prepare_text(run.model, run.tokenizer, recipe.evaluate[0], windows=windows, length=length)
        run.notes.extend(text.notes)
        prediction = measured_prediction(plan, run, self._collect.weighting, text)
        return plan.model_copy(update={"prediction": prediction})

    def _curve(self, planner: Planner) -> list[Point]:
        points = []
        for ratio in RATIOS:
            try:
                plan = planner.at_ratio(float(ratio))
            except PlanError:
                break  # the smallest plan is larger: the curve ends here
            points.append(self._point(planner.method, plan, _expected(plan), timed=True))
        return points

    def _speed_curve(self) -> list[Point]:
        """Return the best plans that have a speed in all phases."""
        points, decoder, model = [], self._run.decoder, self._run.model
        planner = self._make.planner(self._run, self._curves, self._multiples.bounded())
        self._clock.measure(planner.space, self._clock.products)
        for speed in SPEEDS:
            limits = [(time, time.budget(time.original / speed, model, decoder)) for time in self._clock.times]
            try:
                plan = planner.within(limits)
            except PlanError:
                break  # the fastest plan is slower: the curve ends here
            points.append(self._point(planner.method, plan, _expected(plan), timed=True))
        return points

    def _roles(self, plan: Plan) -> list[RoleForecast]:
        """Return what a plan does to the projections of every role."""
        decoder = self._run.decoder
        entries = {name: entry for entry in plan.entries for name in entry.members}
        found = []
        for role in dict.fromkeys(part.role for part in decoder.parts):
            own = [part for part in decoder.parts if part.role == role]
            changed = [(p, entries[p.name]) for p in own if p.name in entries]
            known = decoder.by_name
            kept = [entry.kept(shapes_of([known[name] for name in entry.members])) for _, entry in changed]
            found.append(
                RoleForecast(
                    role=role,
                    projections=len(own),
                    dense=len(own) - len(changed),
                    kept=(len(own) - len(changed) + sum(kept)) / len(own),
                    loss=sum((entry.loss or 0.0) / len(entry.members) for _, entry in changed),
                    original={time.workload.phase: time.dense(own) for time in self._clock.products},
                    seconds={
                        time.workload.phase: time.dense([p for p in own if p.name not in entries])
                        + sum(time.share(p, [known[name] for name in entry.members], entry) for p, entry in changed)
                        for time in self._clock.products
                    },
                )
            )
        return found

    def _baseline(self, method: str) -> list[Point]:
        run, plans = self._run, dict[Fraction, Plan]()
        for ratio in RATIOS:
            try:
                plans[ratio] = published_plan(Planning.create(method=method), ratio, run.decoder)
            except PlanError:
                break
        losses = published_losses(
            method, plans, run.model, run.decoder, self._collect.weighting, self._curves, run.progress
        )
        return [self._point(method, plans[ratio], loss) for ratio, loss in losses.items()]

    def _point(self, method: str, plan: Plan, loss: float, *, timed: bool = False) -> Point:
        decoder = self._run.decoder
        return Point(
            method=method,
            ratio=plan.removed_fraction(decoder),
            parameters=self._other + plan.parameters(decoder),
            multiplications=plan.multiplications(decoder),
            loss=loss,
            speeds={found.phase: found.speed for found in self._clock.speeds(plan)} if timed else {},
        )


def _expected(plan: Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.loss
