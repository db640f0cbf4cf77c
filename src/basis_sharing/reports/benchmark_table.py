"""A benchmark in two tables and a few sentences."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.reports.tables import mebibytes
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkResult, Timing


def benchmark_table(result: BenchmarkResult) -> RenderableType:
    """Return sizes and speeds of all models, what is ideal, and why it is not reached."""
    settings = result.settings
    where = f"{settings.device} ({result.device_name}), {result.threads} thread{'s' if result.threads > 1 else ''}"
    what = f"prompts of {settings.prompt_tokens} random tokens, {settings.new_tokens} new ones"
    parts: list[RenderableType] = [Text(f"\n  {where}; {what}"), _sizes(result)]
    if any(model.memory is not None for model in result.models):
        parts.append(
            Text("  peaks of a fresh process, beyond its libraries; running: generating for the largest batch\n")
        )
    parts += [_speeds(result), Text(f"  {_explanation(result)}")]
    parts += [Text(f"  {sentence}") for sentence in conclusions(result)]
    parts += [Text(f"  note: {note}") for note in result.notes]
    return Group(*parts)


def conclusions(result: BenchmarkResult) -> list[str]:
    """Return one sentence per model on what less work would give and what it gave."""
    first, *others = result.models
    sentences = []
    for other in others:
        found = []
        for workload, basis in (("prefill", "multiply-adds"), ("decode", "bytes of weights")):
            timing = next(t for t in other.timings if t.workload == workload)
            name = "prefill" if workload == "prefill" else f"decoding at batch {timing.batch}"
            found.append(
                f"{name}: {1 / timing.ideal_speed:.3f} x the {basis}, ideally {timing.ideal_speed:.2f} x as fast, "
                f"measured {timing.speed.median:.2f} x"
            )
        mine, reference = other.work.products_per_step, first.work.products_per_step
        steps = f"{mine:,} matrix products per token instead of {reference:,}, each with a fixed cost"
        why = f" (it makes {steps})" if mine > reference else ""
        sentences.append(f"{other.label} against {first.label}: {'; '.join(found)}{why}.")
    return sentences


def _sizes(result: BenchmarkResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Size", title_justify="left")
    table.add_column("model", overflow="fold")
    on_device = any(model.memory is not None and model.memory.device is not None for model in result.models)
    columns = ["dtype", "parameters", "in memory", "on disk", "peak\nloading", "peak\nrunning"]
    for column in [*columns, "peak on\ndevice"] if on_device else columns:
        table.add_column(column, justify="right", no_wrap=True)
    for model in result.models:
        peak = model.memory
        cells = [
            model.dtype,
            f"{model.parameters:,}",
            mebibytes(model.bytes_in_memory),
            mebibytes(model.bytes_on_disk),
            mebibytes(None if peak is None else peak.loading),
            mebibytes(None if peak is None else peak.running),
        ]
        if on_device:
            cells.append(mebibytes(None if peak is None else peak.device))
        table.add_row(model.label, *cells)
    return table


def _speeds(result: BenchmarkResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Speed", title_justify="left")
    table.add_column("workload", no_wrap=True)
    table.add_column("model", overflow="fold")
    for column in ("ms", "tokens/s", "speed", "ideal"):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in zip(*(model.timings for model in result.models), strict=True):
        for index, (model, timing) in enumerate(zip(result.models, rows, strict=True)):
            table.add_row(
                _workload(timing) if index == 0 else "",
                *_cells(result, model, timing),
                end_section=index + 1 == len(rows),
            )
    return table


def _explanation(result: BenchmarkResult) -> str:
    told = f"medians of {result.repeats} repeats (quartiles)"
    if len(result.models) == 1:
        return told
    return (
        f"{told}; speed: times as fast as {result.models[0].label}, from quotients within each repeat; ideal: what "
        "less work alone would give, multiply-adds for prefill and first token, bytes of weights for decoding (a "
        "shared basis is read at every use)"
    )


def _workload(timing: Timing) -> str:
    batch = f", batch {timing.batch}" if timing.workload == "decode" else ""
    return f"{timing.workload}{batch}" + (", compiled" if timing.execution == "compiled" else "")


def _cells(result: BenchmarkResult, model: BenchmarkedModel, timing: Timing) -> tuple[str, ...]:
    time, speed = timing.time, timing.speed
    milliseconds = f"{_digits(time.median)} ({_digits(time.lower)} - {_digits(time.upper)})"
    tokens = {"prefill": result.settings.prompt_tokens, "decode": timing.batch}.get(timing.workload)
    rate = "-" if tokens is None else f"{tokens / time.median:,.0f}"
    if model is result.models[0]:
        return model.label, milliseconds, rate, "1", "1"
    shown = f"{speed.median:.2f} x ({speed.lower:.2f} - {speed.upper:.2f})"
    return model.label, milliseconds, rate, shown, f"{timing.ideal_speed:.2f} x"


def _digits(seconds: float) -> str:
    return f"{1000 * seconds:,.{1 if seconds >= 0.1 else 2}f}"
