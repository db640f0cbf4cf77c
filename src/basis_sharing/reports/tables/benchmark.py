"""Tables of a benchmark: sizes, peaks of memory, and measured, predicted and ideal speeds of several models."""

from basis_sharing.engines.base import ENGINES
from basis_sharing.reports.table import Column, Table, columns
from basis_sharing.reports.tables.cells import NOTHING, noted, size, times
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkResult, Timing
from basis_sharing.results.words import change

_TITLES = {"vllm": "vLLM"} | {name: engine.title for name, engine in ENGINES.items()}


def benchmark_tables(result: BenchmarkResult) -> list[Table]:
    """Return the tables of sizes, peaks of memory if they were measured, and speeds of all models."""
    memory = memory_table(result)
    return [models_table(result), *([memory] if memory is not None else []), speed_table(result)]


def against_first(result: BenchmarkResult, index: int) -> BenchmarkResult:
    """Return a benchmark with only its first model and the one at ``index``."""
    return result.model_copy(update={"models": (result.models[0], result.models[index])})


def models_table(result: BenchmarkResult) -> Table:
    """Return the parameters and bytes of every model."""
    first = result.models[0]
    rows = tuple(
        (
            model.label,
            model.dtype,
            f"{model.parameters:,}",
            _changed(first.bytes_in_memory, model.bytes_in_memory, model is first),
            _changed(first.bytes_on_disk, model.bytes_on_disk, model is first),
        )
        for model in result.models
    )
    return Table("Size", columns("model", "dtype", "parameters", "in memory", "on disk"), rows)


def memory_table(result: BenchmarkResult) -> Table | None:
    """Return the peaks of memory of every model; None if they were not measured."""
    names = {"loading": "while loading", "running": "while generating", "device": "on the device"}
    first = result.models[0]
    peaks = {
        kind: [None if model.memory is None else getattr(model.memory, kind) for model in result.models]
        for kind in names
    }
    shown = [kind for kind in names if any(peak is not None for peak in peaks[kind])]
    if not shown:
        return None
    rows = tuple(
        (model.label, *(_changed(peaks[kind][0], peaks[kind][place], model is first) for kind in shown))
        for place, model in enumerate(result.models)
    )
    notes = (
        "Of a fresh process each, beyond what it holds with all libraries imported; generating: for the largest batch.",
    )
    return Table("Peak memory", columns("model", *(names[kind] for kind in shown)), rows, notes)


def speed_table(result: BenchmarkResult) -> Table:
    """Return the times and speeds of every model, workload by workload, with explanations."""
    predicted = any(model.predicted is not None for model in result.models)
    rows = [
        (_workload(timing), *_cells(result, model, timing, predicted))
        for timings in zip(*(model.timings for model in result.models), strict=True)
        for model, timing in zip(result.models, timings, strict=True)
    ]
    names = ("ms", "tokens/s", "speed", *(("predicted",) if predicted else ()), "ideal")
    return Table(
        "Speed",
        (Column("workload", "left"), Column("model", "left"), *columns(*names, words=0)),
        tuple(rows),
        (
            f"{_circumstances(result)} {_explanation(result, predicted)}",
            *conclusions(result),
            *_warm_up(result),
            *noted(result.notes),
        ),
        sections=tuple(range(len(result.models), len(rows), len(result.models))),
    )


def conclusions(result: BenchmarkResult) -> list[str]:
    """Return one sentence per model on its ideal and its measured speeds."""
    first, *others = result.models
    sentences = []
    for other in others:
        speeds = []
        prefill, decode = other.as_served("prefill", "first token"), other.as_served("decode")
        for timing, basis in ((prefill, "multiply-adds"), (decode, "bytes of weights")):
            name = timing.workload if timing.workload != "decode" else f"decoding at batch {timing.batch}"
            compiled = "compiled " if timing.execution == "compiled" else ""
            ideal = timing.ideal_speed
            work = "" if ideal is None else f"{1 / ideal:.3f} x the {basis}, ideally {ideal:.2f} x as fast, "
            speeds.append(f"{compiled}{name}: {work}measured {timing.speed.median:.2f} x{' as fast' * (ideal is None)}")
        sentences.append(f"{other.label} against {first.label}: {'; '.join(speeds)}{_products(first, other)}.")
    return sentences


def _products(first: BenchmarkedModel, other: BenchmarkedModel) -> str:
    """Return a remark on the number of matrix products, if ``other`` makes more of them."""
    if first.work is None or other.work is None or other.work.products_per_step <= first.work.products_per_step:
        return ""
    mine, reference = other.work.products_per_step, first.work.products_per_step
    return f" (it makes {mine:,} matrix products per token instead of {reference:,}, each with a fixed cost)"


def _warm_up(result: BenchmarkResult) -> list[str]:
    """Return a sentence on the seconds of the warm-up of each model; none for results of earlier versions."""
    seconds = []
    for model in result.models:
        warm_ups = [timing.warm_up for timing in model.timings if timing.warm_up is not None]
        if warm_ups:
            seconds.append(f"{model.label} {sum(warm_ups):.1f} s")
    if not seconds:
        return []
    return [f"Warm-up (compiling, first touches), in none of the times: {', '.join(seconds)}."]


def timing_like(model: BenchmarkedModel, timing: Timing) -> Timing:
    """Return the timing of the same workload on another model."""
    key = (timing.workload, timing.execution, timing.batch)
    return next(t for t in model.timings if (t.workload, t.execution, t.batch) == key)


def _changed(before: int | None, after: int | None, is_first: bool) -> str:
    if is_first or before is None or after is None:
        return size(after)
    return f"{size(after)} ({change(before, after)})"


def _circumstances(result: BenchmarkResult) -> str:
    settings = result.settings
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    what = f"prompts of {settings.prompt_tokens} random tokens, {settings.new_tokens} new ones"
    where = "" if settings.engine == "pytorch" else f" in {_TITLES.get(settings.engine, settings.engine)}"
    return f"{settings.device} ({result.device_name}){where}, {threads}; {what}."


def _explanation(result: BenchmarkResult, predicted: bool) -> str:
    repeats = (
        f"Medians of {result.repeats} repeats (quartiles in brackets). Decoding: time of one token of the whole batch."
    )
    if len(result.models) == 1:
        return repeats
    return (
        f"{repeats} Speed: times as fast as {result.models[0].label}, from quotients within each repeat, above 1 is "
        "faster. Ideal: what less work alone would give, multiply-adds for prefill and first token, bytes of weights "
        "for decoding (a shared basis is read at every use)."
        + (" Predicted: by the plan, against the original." if predicted else "")
    )


def _workload(timing: Timing) -> str:
    return f"{timing.workload}, batch {timing.batch}" + (", compiled" if timing.execution == "compiled" else "")


def _cells(result: BenchmarkResult, model: BenchmarkedModel, timing: Timing, predicted: bool) -> tuple[str, ...]:
    time, speed = timing.time, timing.speed
    milliseconds = f"{_digits(time.median)} ({_digits(time.lower)} to {_digits(time.upper)})"
    tokens = timing.batch * (1 if timing.workload == "decode" else result.settings.prompt_tokens)
    rate = f"{tokens / time.median:,.0f}" if timing.workload != "first token" else NOTHING
    foreseen = model.predicted_speed(timing, result.settings.prompt_tokens)
    prediction = (NOTHING if foreseen is None else times(foreseen),) if predicted else ()
    if model is result.models[0]:
        return model.label, milliseconds, rate, "1", *prediction, NOTHING if timing.ideal_speed is None else "1"
    shown = f"{times(speed.median)} ({speed.lower:.2f} to {speed.upper:.2f})"
    ideal = NOTHING if timing.ideal_speed is None else times(timing.ideal_speed)
    return model.label, milliseconds, rate, shown, *prediction, ideal


def _digits(seconds: float) -> str:
    return f"{1000 * seconds:,.{1 if seconds >= 0.1 else 2}f}"
