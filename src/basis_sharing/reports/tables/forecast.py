"""The table of a forecast: the expected perplexity of every method at every ratio, and a description of the plan."""

from math import exp

from basis_sharing.reports.table import Table, columns
from basis_sharing.reports.tables.cells import NOTHING, noted, percent
from basis_sharing.reports.tables.groups import sharing_counts
from basis_sharing.results.forecast import Forecast
from basis_sharing.results.words import expectation

_NEAR = 0.03


def forecast_table(forecast: Forecast) -> Table:
    """Return the expected perplexity of every method at every ratio, with a description of the plan."""
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
        rows.append((percent(ratio, 0), *cells))
    return Table(
        "Expected perplexity, multiple of the original's (in brackets: multiplications per token)",
        columns("removed", *methods, words=0),
        tuple(rows),
        (*plan_sentences(forecast), *noted(forecast.notes)),
    )


def plan_sentences(forecast: Forecast) -> list[str]:
    """Return sentences about the groups of the plan, and the costs and gains of its choices."""
    plan, prediction = forecast.plan, forecast.plan.prediction
    assert prediction is not None
    groups, across_layers, across_roles = sharing_counts(plan)
    sentences = [
        f"The plan removes {percent(plan.ratio, 2)} of the compressible parameters; {groups} groups, of which "
        f"{across_layers} share across layers and {across_roles} across roles.",
        expectation(prediction),
    ]
    if forecast.unshared_loss is not None:
        gain = forecast.unshared_loss / prediction.loss - 1
        sentences.append(
            f"Without sharing across layers the expected loss would be {percent(gain)} higher in the same size."
        )
    if prediction.scale is None:
        sentences.append("--evaluate TEXT measures the plan once and scales the expectation by what is true.")
    if forecast.unrounded_loss is not None:
        price = prediction.loss - forecast.unrounded_loss
        sentences.append(f"The rank multiple costs {price:.4f} nats per token (before scaling) in the same size.")
    if not plan.gradients:
        sentences.append("Planned without gradients: the expectation is coarser, and the result usually worse.")
    return sentences


def _cell(loss: float, multiplications: int, forecast: Forecast) -> str:
    expected = f"{exp(loss):.2f}" if loss < 4.6 else "> 100"
    return f"{expected} ({multiplications / forecast.dense_multiplications:.2f})"
