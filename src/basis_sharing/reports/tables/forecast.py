"""The tables of a forecast: expected perplexity and speed at every ratio, speeds, roles, and what the plan is."""

from collections import Counter
from collections.abc import Sequence
from math import exp

from basis_sharing.plans.plan import Plan, PredictedSpeed
from basis_sharing.reports.table import Block, Table, columns
from basis_sharing.reports.tables.cells import NOTHING, noted, percent, size, times
from basis_sharing.reports.tables.groups import sharing_counts
from basis_sharing.results.forecast import Forecast
from basis_sharing.results.words import expectation

_NEAR = 0.03


def forecast_tables(forecast: Forecast) -> list[Block]:
    """Return what every size and every speed costs, what the plan does to every role, and sentences about the plan."""
    tables: list[Block] = [size_table(forecast)]
    if forecast.speed_points:
        tables.append(speed_table(forecast))
    if forecast.bit_points:
        tables.append(bits_table(forecast))
    if forecast.roles:
        tables.append(role_table(forecast))
    return [*tables, *plan_sentences(forecast), *noted(forecast.notes)]


def size_table(forecast: Forecast) -> Table:
    """Return the expected perplexity of every method and the speed of the planner's plan at every ratio."""
    prediction = forecast.plan.prediction
    assert prediction is not None
    scale = 1.0 if prediction.scale is None else prediction.scale
    methods = list(dict.fromkeys(point.method for point in forecast.points))
    ratios = list(dict.fromkeys(round(point.ratio, 2) for point in forecast.points if point.method == methods[0]))
    rows = []
    for ratio in ratios:
        cells = []
        for method in methods:
            near = [p for p in forecast.points if p.method == method and abs(p.ratio - ratio) < _NEAR]
            cells.append(_cell(near[0].loss * scale, near[0].multiplications, forecast) if near else NOTHING)
        own = next(p for p in forecast.points if p.method == methods[0] and round(p.ratio, 2) == ratio)
        rows.append((percent(ratio, 0), *cells, *(times(own.speeds.get(phase)) for phase in _phases(forecast))))
    return Table(
        "Expected perplexity, multiple of the original's (in brackets: multiplications per token)",
        columns("removed", *methods, *(f"{phase}, {methods[0]}" for phase in _phases(forecast)), words=0),
        tuple(rows),
    )


def speed_table(forecast: Forecast) -> Table:
    """Return the expected perplexity of the best plan for every speed, which it has in all phases."""
    prediction = forecast.plan.prediction
    scale = 1.0 if prediction is None or prediction.scale is None else prediction.scale
    rows = tuple(
        (
            *(times(point.speeds[phase]) for phase in _phases(forecast)),
            percent(point.ratio, 0),
            _multiple(point.loss * scale),
        )
        for point in forecast.speed_points
    )
    return Table("Planned for speed", columns(*_phases(forecast), "removed", "expected perplexity", words=0), rows)


def bits_table(forecast: Forecast) -> Table:
    """Return the expected perplexity of the planner and its options at every number of bits, and of plain rounding."""
    prediction = forecast.plan.prediction
    scale = 1.0 if prediction is None or prediction.scale is None else prediction.scale
    methods = list(dict.fromkeys(point.method for point in forecast.bit_points))
    rows = []
    for bits in sorted({point.bits for point in forecast.bit_points}, reverse=True):
        same = {point.method: point for point in forecast.bit_points if point.bits == bits}
        cells = [_multiple(same[name].loss * scale) if name in same else NOTHING for name in methods]
        rows.append((f"{bits:.2f}", size(max(point.bytes for point in same.values())), *cells))
    return Table(
        "Expected perplexity, multiple of the original's, by bits per weight of the projections",
        columns("bits", "model", *methods, words=0),
        tuple(rows),
    )


def role_table(forecast: Forecast) -> Table:
    """Return what the plan does to the projections of every role."""
    rows = tuple(
        (
            role.role,
            f"{role.dense} of {role.projections}",
            percent(role.kept, 0),
            f"{role.loss:.4f}",
            *(times(role.original[phase] / role.seconds[phase]) for phase in role.seconds),
        )
        for role in forecast.roles
    )
    heads = ("role", "stay dense", "rank kept", "nats per token", *_phases(forecast))
    return Table("What the plan does to every role (speeds of its projections alone)", columns(*heads), rows)


def _phases(forecast: Forecast) -> list[str]:
    prediction = forecast.plan.prediction
    return [] if prediction is None else [found.phase for found in prediction.speeds]


def speed_sentence(speeds: Sequence[PredictedSpeed]) -> str:
    """Return the expected speed of a plan in every phase, in one sentence."""
    phases = {
        "prefill": "reading a prompt of {0.tokens} tokens",
        "decode": "decoding at batch {0.batch} after {0.tokens} tokens",
    }
    parts = [
        f"{found.speed:.2f} x the original's speed in {phases[found.phase].format(found)} "
        f"({1000 * found.original:.1f} -> {1000 * found.seconds:.1f} ms)"
        for found in speeds
    ]
    return f"The plan is expected to have {' and '.join(parts)}."


def rounding_sentences(plan: Plan) -> list[str]:
    """Return a sentence on what a plan rounds to how many bits; none if it rounds nothing."""
    found = ((entry, entry.grid("weight")) for entry in plan.entries)
    counts = Counter((len(entry.tensors) > 1, grid.bits) for entry, grid in found if grid is not None)
    words = [
        f"{count} to {bits} bits" + (" in factors" if factors else "")
        for (factors, bits), count in sorted(counts.items())
    ]
    return [f"Projections are rounded, {', '.join(words)}."] if words else []


def plan_sentences(forecast: Forecast) -> list[str]:
    """Return sentences about the groups of the plan, and the costs and gains of its choices."""
    plan, prediction = forecast.plan, forecast.plan.prediction
    assert prediction is not None
    groups, across_layers, across_roles = sharing_counts(plan)
    sentences = [
        f"The plan removes {percent(plan.ratio, 2)} of the compressible parameters; {groups} groups, of which "
        f"{across_layers} share across layers and {across_roles} across roles.",
        *rounding_sentences(plan),
        expectation(prediction),
    ]
    if forecast.unranked_loss is not None:
        known = {name: entry for entry in plan.entries for name in entry.members if entry.kind != "bits"}
        gain = forecast.unranked_loss / prediction.loss - 1
        sentences.append(
            f"{len(known)} projections get a rank: without ranks the expected loss would be {percent(gain)} higher in "
            "the same bytes."
        )
    if forecast.unshared_loss is not None:
        gain = forecast.unshared_loss / prediction.loss - 1
        sentences.append(
            f"Without sharing across layers the expected loss would be {percent(gain)} higher in the same size."
        )
    if prediction.speeds:
        sentences.append(speed_sentence(prediction.speeds))
    if prediction.scale is None:
        sentences.append("--evaluate TEXT measures the plan once and scales the expectation by what is true.")
    if forecast.unrounded_loss is not None:
        price = prediction.loss - forecast.unrounded_loss
        sentences.append(
            f"Ranks in multiples of {forecast.rank_multiples} cost {price:.4f} nats per token (before scaling) in the "
            "same size."
        )
    if not plan.gradients:
        sentences.append("Planned without gradients: the expectation is coarser, and the result usually worse.")
    return sentences


def _cell(loss: float, multiplications: int, forecast: Forecast) -> str:
    return f"{_multiple(loss)} ({multiplications / forecast.dense_multiplications:.2f})"


def _multiple(loss: float) -> str:
    return f"{exp(loss):.2f}" if loss < 4.6 else "> 100"
