"""Results made by hand, one of every kind that tables are made from."""

from typing import Any

from basis_sharing.benchmark.turns import paired_speed, spread
from basis_sharing.models.sizes import RoleRow
from basis_sharing.plans.plan import Plan, Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.recovery import RecoverySettings
from basis_sharing.results.benchmark import (
    BenchmarkedModel,
    BenchmarkResult,
    BenchmarkSettings,
    PeakMemory,
    Timing,
    Work,
)
from basis_sharing.results.comparison import (
    Agreement,
    Check,
    Comparison,
    Continuation,
    Difference,
    Disagreement,
    Drift,
    Generation,
    Interval,
    Limits,
    Measured,
    TaskDifference,
    Verdict,
)
from basis_sharing.results.compression import CalibrationReport, CompressionResult, EntryReport
from basis_sharing.results.estimate import Estimate, StageEstimate
from basis_sharing.results.forecast import Forecast, Point
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.results.recovery import RecoveryReport
from basis_sharing.results.rollout import Rollout, RolloutSettings, Step
from basis_sharing.results.study import RoleAtRatio, RoleStudy, SharingStudy
from basis_sharing.results.tasks import PairedDifference, TaskResults, TaskScore
from basis_sharing.runtime.entries_basis_sharing import Factors

DENSE_SECONDS = (0.2, 0.21, 0.22)
WORKLOADS = (("prefill", "eager", 1), ("first token", "eager", 1), ("decode", "eager", 8), ("decode", "compiled", 8))


def perplexity(nats: float, **changes: Any) -> Perplexity:
    """Return a measured perplexity."""
    found = Perplexity(
        text="/data/wiki|test.txt",
        fingerprint="f",
        perplexity=2.718281828**nats,
        nats_per_token=nats,
        window_nats=(nats,),
        bits_per_byte=nats / 3,
        windows=1,
        length=64,
        tokens=63,
        bos=True,
        dtype="float32",
        notes=("The text is short.",),
    )
    return found.model_copy(update=changes)


def compression(**changes: Any) -> CompressionResult:
    """Return the result of a compression."""
    before = Sizes(
        parameters=1000,
        projection_parameters=800,
        projection_multiplications=800,
        bytes_in_memory=4000,
        bytes_on_disk=4100,
    )
    after = Sizes(
        parameters=820,
        projection_parameters=620,
        projection_multiplications=700,
        bytes_in_memory=3280,
        bytes_on_disk=3400,
    )
    result = CompressionResult(
        model="/data/models/llama",
        model_fingerprint="abc",
        family="llama",
        recipe=Recipe.create(ratio=0.2, roles=("q", "k")),
        shared_roles=("q",),
        calibration=CalibrationReport(source="c4:/data/c4.txt", fingerprint="w", windows=4, length=64, dtype="float32"),
        ratio_reached=0.225,
        before=before,
        after=after,
        method="auto",
        prediction=prediction(),
        entries=(entry("model.layers.0.q", "model.layers.1.q"), entry("model.layers.0.k")),
        perplexity_before=(perplexity(2.0),),
        perplexity_after=(perplexity(2.1),),
        notes=tuple(f"Note {number}." for number in range(8)),
        versions={"torch": "2", "basis-sharing": "0.1.0"},
        recovery=recovery(),
    )
    return result.model_copy(update=changes)


def prediction(**changes: Any) -> Prediction:
    """Return what a plan is expected to cost, scaled by a measurement."""
    return Prediction(loss=0.1, scale=1.25, scale_error=0.05, text="/data/wiki.txt").model_copy(update=changes)


def entry(*members: str) -> EntryReport:
    """Return the report of one executed entry."""
    return EntryReport(entry=Factors(members=members, rank=8, form="pivoted", loss=0.1), relative_loss=0.2, ridge=0)


def comparison(**changes: Any) -> Comparison:
    """Return a comparison with everything in it, a baseline included."""
    wide = Interval(low=0.9, high=1.2)
    difference = Difference(
        nats_per_token=0.1, nats_interval=Interval(low=-0.1, high=0.3), quotient=1.05, quotient_interval=wide
    )
    place = {"window": 0, "position": 3, "first_probability": 0.5, "second_probability": 0.25, "kl": 2.5}
    second = Measured(model="small", perplexity=perplexity(2.1))
    result = Comparison(
        first=Measured(model="dense", perplexity=perplexity(2.0)),
        second=second,
        difference=difference,
        agreement=Agreement(
            mean_kl=0.25,
            kl_interval=None,
            percentile_99_kl=1.5,
            top1=0.875,
            top1_interval=Interval(low=0.8, high=0.95),
            window_kl=(0.25,),
            window_top1=(0.875,),
            tokens=63,
            disagreements=(
                Disagreement(context="a\n| b", token=" ", first="*x*", second="\x01", **place),  # type: ignore[arg-type]
            ),
        ),
        generations=(
            Generation(
                prompt="Once <upon>",
                first=Continuation(text="\x1b[31mred\n\n  [bold]and\x07", tokens=9, ended=True),
                second=Continuation(text="", tokens=0, ended=True),
            ),
        ),
        tasks=(TaskDifference(task="arc_easy", first=0.75, second=0.5, paired=paired()),),
        new_tokens=8,
        dtype="auto",
        limits=Limits(max_kl=0.2),
        verdict=Verdict(
            held=False,
            sentence="B breaks one limit.",
            checks=(Check(limit="max_kl", bound=0.2, value=0.25, interval=None, held=False, uncertain=True),),
        ),
        drift=Drift(baseline="r.json", stored=second, difference=difference, changed_generations=1, versions={}),
        first_is_stored=True,
        notes=("B's tokenizer is another one.",),
        versions={},
    )
    return result.model_copy(update=changes)


def paired() -> PairedDifference:
    """Return a paired difference of two models on four examples."""
    return PairedDifference(examples=4, only_first=1, only_second=0, difference=-0.25, standard_error=0.25, p_value=1.0)


def benchmarked(label: str, seconds: tuple[float, ...], ideal: float, products: int, device: int | None) -> Any:
    """Return everything measured on one model; the first one takes ``DENSE_SECONDS`` for each workload."""
    work = Work(
        prefill_multiply_adds=100, first_token_multiply_adds=90, weight_bytes_per_step=80, products_per_step=products
    )
    timings = tuple(
        Timing(
            workload=workload,
            execution=execution,
            batch=batch,
            seconds=seconds,
            time=spread(seconds),
            speed=paired_speed(DENSE_SECONDS, seconds),
            ideal_speed=ideal,
            warm_up=1.5,
        )
        for workload, execution, batch in WORKLOADS
    )
    return BenchmarkedModel(
        model=f"models/{label}",
        label=label,
        dtype="float32",
        parameters=1000,
        bytes_in_memory=3 * 2**20,
        bytes_on_disk=2**20,
        work=work,
        memory=PeakMemory(libraries=0, loading=5 * 2**20, running=7 * 2**20, device=device),
        timings=timings,
    )


def benchmark(device: int | None = None, products: int = 60) -> BenchmarkResult:
    """Return a benchmark of two models, the second of which makes so many matrix products per token."""
    settings = BenchmarkSettings(
        prompt_tokens=512,
        new_tokens=32,
        batch_sizes=(8,),
        repeats=3,
        compiled=True,
        memory=True,
        dtype="auto",
        device="cpu",
        seed=0,
    )
    models = (
        benchmarked("dense", DENSE_SECONDS, 1.0, 30, device),
        benchmarked("small", (0.16, 0.14, 0.2), 1.25, products, device),
    )
    return BenchmarkResult(
        settings=settings,
        device_name="A Processor",
        threads=2,
        models=models,
        notes=("something is unusual",),
        versions={},
    )


def score(task: str, accuracy: float, error: float | None, normalized: float | None = None) -> TaskScore:
    """Return a score on a task of 1,000 examples."""
    return TaskScore(
        task=task,
        version="1.0",
        split="test",
        source="a file",
        examples=1000,
        accuracy=accuracy,
        accuracy_error=error,
        normalized_accuracy=normalized,
        normalized_accuracy_error=None if normalized is None else 0.01,
        correct=None,
        correct_normalized=None,
        data_fingerprint="d" * 32,
        prompt_fingerprint="0123456789abcdef",
        notes=(f"{task} is a sample.",),
    )


def tasks(*scores: TaskScore) -> TaskResults:
    """Return the scores of one model."""
    return TaskResults(
        model="m", model_fingerprint=None, dtype="float32", limit=None, harness="0.4", scores=scores, notes=("A run.",)
    )


def rollout(fingerprint: str = "abc") -> Rollout:
    """Return a rollout of two steps, the second of which breaks a limit, of a model with this fingerprint."""
    settings = RolloutSettings(
        model="original",
        model_fingerprint=fingerprint,
        compression={},
        ratios=(0.1, 0.3),
        text="text.txt",
        evaluation_windows=None,
        limits=Limits(max_kl=0.2, min_agreement=0.9),
        benchmark=False,
    )
    steps = tuple(
        Step(
            name=f"{ratio:g}",
            roles=("gate", "up"),
            ratio=ratio,
            parameters=900,
            parameters_before=1000,
            bytes_on_disk=2048,
            perplexity_quotient=1 + ratio,
            mean_kl=ratio / 2,
            top1=1 - ratio,
            prefill_speed=speed,
            decode_speed=speed,
            verdict=Verdict(held=speed is not None, sentence="", checks=()),
        )
        for ratio, speed in ((0.1, 1.25), (0.3, None))
    )
    return Rollout(settings=settings, steps=steps, finished=True, versions={})


def recovery(**changes: Any) -> RecoveryReport:
    """Return what a recovery did that gained something and slowed down once."""
    report = RecoveryReport(
        settings=RecoverySettings.create(),
        fingerprint="w",
        windows=30,
        held_out=3,
        steps=1200,
        tokens=1200 * 1024,
        trained_parameters=500,
        loss_before=0.2,
        loss_after=0.1,
        slowed=1,
        diverged=False,
        perplexity_before=(perplexity(2.1),),
        perplexity_after=(perplexity(2.05),),
    )
    return report.model_copy(update=changes)


def plan(rank: int = 8, method: str = "auto") -> Plan:
    """Return a plan for two layers: q is shared across them, k and v of the first one with each other."""
    entries = (
        Factors(members=("model.layers.0.q", "model.layers.1.q"), rank=rank, form="pivoted"),
        Factors(members=("model.layers.0.k", "model.layers.0.v"), rank=4),
    )
    return Plan(method=method, ratio=0.3, prediction=prediction(), entries=entries)


def forecast(**changes: Any) -> Forecast:
    """Return a plan and the curves of two methods around it."""
    points = tuple(
        Point(method=method, ratio=ratio, parameters=1000, multiplications=900, loss=loss)
        for method, ratio, loss in (("auto", 0.2, 0.1), ("auto", 0.5, 1.0), ("svd", 0.2, 9.0))
    )
    found = Forecast(
        plan=plan(),
        dense_parameters=1000,
        dense_multiplications=1000,
        points=points,
        rank_multiples="8 to 16",
        unrounded_loss=0.05,
        unshared_loss=0.11,
    )
    return found.model_copy(update=changes)


def estimate() -> Estimate:
    """Return what a run of two stages will need."""
    return Estimate(
        stages=(
            StageEstimate(name="calibrate", seconds=20, memory=2**20),
            StageEstimate(name="plan", seconds=3 * 3600, memory=2**30),
        ),
        resident=2**28,
        least_memory=2**31,
        memory=2**33,
        work_bytes=2**20,
        output_bytes=2**21,
        windows=6,
        length=64,
        processes=2,
    )


def role_row(name: str, size: int, compressible: bool = True) -> RoleRow:
    """Return one line of an inspection, of a model of 100 MiB."""
    reason = "" if compressible else "why"
    return RoleRow(name, ((8, 8),), 1, size // 4, size, size / (100 * 2**20), compressible, reason)


def role_study(name: str, *quotients: float | None) -> RoleStudy:
    """Return a study of two layers from one quotient per ratio."""
    matrices = tuple(((None, q), (q, None)) for q in quotients)
    summaries = tuple(
        RoleAtRatio(
            ratio=ratio,
            pairs=int(q is not None),
            pairs_paying=int(q is not None and q < 1),
            neighbours=int(q is not None),
            neighbours_paying=int(q is not None and q < 1),
            best_pair=None if q is None else (0, 1),
            best_gain=None if q is None else 1 - q,
            best_neighbour=q,
            median_neighbour=q,
        )
        for ratio, q in zip((0.2, 0.4), quotients, strict=True)
    )
    return RoleStudy(
        name=name,
        role=name,
        slot=f"x.{name}",
        d_in=8,
        d_out=8,
        layers=(0, 1),
        quotients=matrices,
        shared_losses=matrices,
        summaries=summaries,
        lowest_paying_ratio=next((s.ratio for s in summaries if s.pairs_paying), None),
    )


def sharing_study(*roles: RoleStudy) -> SharingStudy:
    """Return a study of these roles at the ratios 0.2 and 0.4."""
    return SharingStudy(ratios=(0.2, 0.4), roles=roles)


MIXED_STUDY = sharing_study(
    role_study("q", 1.2, 0.8), role_study("k", 0.9, 1.1), role_study("v", 1.5, 1.4), role_study("o", 1.5, None)
)
