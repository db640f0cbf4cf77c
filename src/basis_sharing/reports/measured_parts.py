"""The parts of a report about what other verbs measured: comparison, benchmark, tasks."""

import re
from unicodedata import category

from basis_sharing.evaluation.paired import task_difference
from basis_sharing.reports.benchmark_table import conclusions
from basis_sharing.reports.material import Material
from basis_sharing.reports.parts import Table, Tile
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkResult, Timing
from basis_sharing.results.comparison import Comparison, Interval, TaskDifference
from basis_sharing.results.tasks import TaskScore
from basis_sharing.results.words import amount_of_bytes, change, short_name

_NOTHING = "\u2013"
_PAIRED = (
    "The difference is paired, example by example, where both models read the same prompts; p: how likely so uneven a "
    "split of the disagreements is between equally good models."
)


def measured_tiles(material: Material) -> list[Tile]:
    """Return the numbers at a glance that comparisons and benchmarks add."""
    shown = []
    for comparison in material.comparisons:
        found = comparison.agreement
        if found is not None:
            shown.append(
                Tile(
                    "same next token", f"{100 * found.top1:.1f} %", f"KL divergence {found.mean_kl:.4f} nats per token"
                )
            )
    for benchmark in material.benchmarks:
        model = _model(benchmark, material.name)
        for workload in ("prefill", "decode"):
            timing = next(timing for timing in model.timings if timing.workload == workload)
            name = "prompt" if workload == "prefill" else f"decoding, batch {timing.batch}"
            before = _same(benchmark.models[0], timing).time.median
            shown.append(
                Tile(
                    f"speed, {name}",
                    f"\u00d7 {timing.speed.median:.2f}",
                    f"{_seconds(before)} \u2192 {_seconds(timing.time.median)}",
                )
            )
    return shown


def comparison_table(comparison: Comparison) -> Table:
    """Return how far apart the two models are."""
    one, other = comparison.first.perplexity, comparison.second.perplexity
    rows = [(f"perplexity of the original, {one.text}", f"{one.perplexity:,.4f}", _NOTHING)]
    rows.append((f"perplexity of the compressed model, {other.text}", f"{other.perplexity:,.4f}", _NOTHING))
    if comparison.difference is not None:
        found = comparison.difference
        rows.append(("quotient", f"{found.quotient:.4f} \u00d7", _interval(found.quotient_interval, ".4f")))
        rows.append(
            ("nats per token more", _minus(f"{found.nats_per_token:+.5f}"), _interval(found.nats_interval, "+.5f"))
        )
    if comparison.agreement is not None:
        near = comparison.agreement
        rows.append(("same most probable token", f"{100 * near.top1:.2f} %", _percentages(near.top1_interval)))
        rows.append(("KL divergence, mean, nats", f"{near.mean_kl:.5f}", _interval(near.kl_interval, ".5f")))
        rows.append(("exceeded by 1 % of the tokens", f"{near.percentile_99_kl:.5f}", _NOTHING))
    if comparison.drift is not None:
        since, then = comparison.drift.difference, comparison.drift.stored.perplexity.perplexity
        quotient = f"{since.quotient:.4f} \u00d7"
        rows.append((f"against the baseline ({then:,.4f})", quotient, _interval(since.quotient_interval, ".4f")))
    notes = (f"{other.windows} windows of {other.length} tokens, in {other.dtype}.", *comparison.notes)
    return Table("How far apart the models are", ("", "value", "95 % interval"), tuple(rows), notes)


def checks_table(comparison: Comparison) -> Table | None:
    """Return the limits that were set and whether they were held; None where none was."""
    checks = comparison.verdict.checks
    if not checks:
        return None
    rows = tuple(
        (
            check.limit.replace("_", " "),
            f"{check.bound:.4g}",
            f"{check.value:.4g}",
            ("held" if check.held else "broken") + (", but uncertain" if check.uncertain else ""),
        )
        for check in checks
    )
    return Table("Limits", ("limit", "bound", "measured", ""), rows)


def disagreement_table(comparison: Comparison, most: int = 8) -> Table | None:
    """Return the places where the models disagree most; None where there are none."""
    if comparison.agreement is None or not comparison.agreement.disagreements:
        return None
    rows = tuple(
        (
            f"\u2026{visible(place.context[-60:])}",
            visible(place.token),
            f"{visible(place.first)} ({place.first_probability:.0%})",
            f"{visible(place.second)} ({place.second_probability:.0%})",
            f"{place.kl:.3f}",
        )
        for place in comparison.agreement.disagreements[:most]
    )
    head = ("text before", "the text", "original says", "compressed says", "KL, nats")
    return Table("Where they disagree most", head, rows)


def visible(text: str) -> str:
    """Return a text in one line, with marks for the line breaks, lone spaces and control characters in it."""
    shown = text.replace("\n", "\u21b5").replace("\t", "\u21e5")
    return without_controls(shown if shown.strip() else shown.replace(" ", "\u2423"))


def without_empty_lines(text: str) -> str:
    """Return a text with a word in place of many empty lines, which a model may write until it is stopped."""
    return re.sub(r"\n{4,}", lambda found: f"\n[{len(found[0]) - 1} empty lines]\n", text)


def without_controls(text: str) -> str:
    """Return a text with the control characters that HTML forbids replaced by the mark of the unreadable."""
    return "".join("\ufffd" if category(letter) == "Cc" and letter not in "\n\t" else letter for letter in text)


def speed_table(benchmark: BenchmarkResult, name: str) -> Table:
    """Return the times of the original and of the compressed model, workload by workload."""
    first, model = benchmark.models[0], _model(benchmark, name)
    rows = []
    for timing in model.timings:
        before = _same(first, timing)
        rows.append(
            (
                f"{timing.workload}, batch {timing.batch}" + (", compiled" if timing.execution == "compiled" else ""),
                _seconds(before.time.median),
                _seconds(timing.time.median),
                f"{timing.speed.median:.2f} \u00d7 ({timing.speed.lower:.2f} to {timing.speed.upper:.2f})",
                f"{timing.ideal_speed:.2f} \u00d7",
            )
        )
    settings = benchmark.settings
    threads = f", {benchmark.threads} threads" if settings.device == "cpu" else ""
    notes = [
        f"{benchmark.device_name}{threads}, {model.dtype}; prompts of {settings.prompt_tokens} tokens; medians of "
        f"{benchmark.repeats} repeats, quartiles in brackets. Decoding: time of one token of the whole batch. Ideal: "
        "the speed if only the work counted.",
        *(told for told in conclusions(benchmark) if told.startswith(f"{model.label} against ")),
        *benchmark.notes,
    ]
    head = ("workload", "original", "compressed", "speed (above 1: faster)", "ideal speed")
    return Table("Speed", head, tuple(rows), tuple(notes))


def memory_table(benchmark: BenchmarkResult, name: str) -> Table | None:
    """Return the peaks of memory of both models; None where they were not measured."""
    before, after = benchmark.models[0].memory, _model(benchmark, name).memory
    if before is None or after is None:
        return None
    pairs = [("while loading", before.loading, after.loading), ("while generating", before.running, after.running)]
    if before.device is not None and after.device is not None:
        pairs.append(("on the device", before.device, after.device))
    rows = tuple((what, amount_of_bytes(old), amount_of_bytes(new), change(old, new)) for what, old, new in pairs)
    note = "Of a fresh process each, beyond what it holds with all libraries imported."
    return Table("Peak memory", ("", "original", "compressed", "change"), rows, (note,))


def task_table(material: Material) -> Table | None:
    """Return the task scores of both models; None where there are none."""
    before = {score.task: score for tasks in material.tasks_before for score in tasks.scores}
    after = {score.task: score for tasks in material.tasks_after for score in tasks.scores}
    if not before and not after:
        return None
    rows = tuple(_task_row(task, before.get(task), after.get(task)) for task in dict.fromkeys([*before, *after]))
    runs = [*material.tasks_before, *material.tasks_after]
    notes = dict.fromkeys(note for run in runs for note in run.all_notes)
    harnesses = ", ".join(sorted({run.harness for run in runs}))
    told = f"lm-evaluation-harness {harnesses}; \u00b1 one standard error. {_PAIRED}"
    head = ("task", "examples", "original", "compressed", "difference", "p")
    return Table("Accuracy on tasks without examples in the prompt", head, rows, (told, *notes))


def _task_row(task: str, before: TaskScore | None, after: TaskScore | None) -> tuple[str, ...]:
    difference = (
        (_NOTHING, _NOTHING) if before is None or after is None else _difference(task_difference(before, after))
    )
    score = after or before
    assert score is not None
    return f"{task} ({score.split})", f"{score.examples:,}", _accuracy(before), _accuracy(after), *difference


def compared_tasks_table(comparison: Comparison) -> Table | None:
    """Return the task accuracies that a comparison measured on both models; None where it did not."""
    if not comparison.tasks:
        return None
    rows = tuple(
        (task.task, f"{100 * task.first:.1f} %", f"{100 * task.second:.1f} %", *_difference(task))
        for task in comparison.tasks
    )
    return Table("Accuracy on tasks", ("task", "original", "compressed", "difference", "p"), rows, (_PAIRED,))


def _difference(task: TaskDifference) -> tuple[str, str]:
    """Return the difference in points with its standard error, and the p-value."""
    difference = _minus(f"{100 * (task.second - task.first):+.1f}") + " points"
    if task.paired is None:
        return difference, _NOTHING
    if task.paired.standard_error is not None:
        difference += f" \u00b1 {100 * task.paired.standard_error:.1f}"
    return difference, f"{task.paired.p_value:.3f}"


def _accuracy(score: TaskScore | None) -> str:
    if score is None:
        return _NOTHING
    error = "" if score.accuracy_error is None else f" \u00b1 {100 * score.accuracy_error:.1f}"
    return f"{100 * score.accuracy:.1f} %{error}"


def _model(benchmark: BenchmarkResult, name: str) -> BenchmarkedModel:
    return next(model for model in benchmark.models[1:] if short_name(model.model) == name)


def _same(model: BenchmarkedModel, timing: Timing) -> Timing:
    """Return the timing of the same workload on another model."""
    key = (timing.workload, timing.execution, timing.batch)
    return next(t for t in model.timings if (t.workload, t.execution, t.batch) == key)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}\u00a0s" if seconds >= 1 else f"{1000 * seconds:.1f}\u00a0ms"


def _percentages(interval: Interval | None) -> str:
    return _NOTHING if interval is None else f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %"


def _interval(interval: Interval | None, form: str) -> str:
    if interval is None:
        return _NOTHING
    return _minus(f"{interval.low:{form}} to {interval.high:{form}}")


def _minus(number: str) -> str:
    """Return a number with a minus sign instead of a hyphen."""
    return number.replace("-", "\u2212")
