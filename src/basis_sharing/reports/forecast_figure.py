"""The picture of a forecast: expected perplexity against size for every method."""

from math import exp
from pathlib import Path
from typing import Any

from basis_sharing.results.forecast import Forecast

_STYLES: dict[str, dict[str, Any]] = {"auto": {"color": "#0b5fa5", "linewidth": 2.5, "marker": "o", "zorder": 5}}
_OTHERS = ["#e69f00", "#009e73", "#cc79a7", "#8c564b", "#7f7f7f"]
_MOST_SHOWN = 20.0


def draw_forecast(forecast: Forecast, path: Path) -> None:
    """Draw expected perplexity as a multiple of the original's against the size of the model, as PNG.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    prediction = forecast.plan.prediction
    assert prediction is not None
    scale = 1.0 if prediction.scale is None else prediction.scale
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=_OTHERS)
    for method in dict.fromkeys(point.method for point in forecast.points):
        points = [p for p in forecast.points if p.method == method and p.loss * scale < 7]
        style = _STYLES.get(method, {"linewidth": 1.3, "marker": ".", "alpha": 0.85})
        axes.plot(
            [p.parameters / 1e6 for p in points],
            [exp(p.loss * scale) for p in points],
            label=method,
            **style,
        )
    own = [p for p in forecast.points if p.method == forecast.plan.method]
    chosen = min(own, key=lambda p: abs(p.ratio - forecast.plan.ratio))
    axes.axvline(_parameters(forecast) / 1e6, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"the plan: {forecast.plan.ratio:.0%} removed, {exp(prediction.nats_per_token):.2f} x",
        (_parameters(forecast) / 1e6, exp(prediction.nats_per_token)),
        xytext=(8, -14 if chosen.loss * scale > 0.5 else 10),
        textcoords="offset points",
        fontsize=9,
    )
    axes.plot([_parameters(forecast) / 1e6], [exp(prediction.nats_per_token)], "*", color="#c23b22", markersize=14)
    axes.plot([forecast.dense_parameters / 1e6], [1.0], "s", color="black", label="original")
    axes.set_yscale("log")
    axes.set_ylim(0.93, _MOST_SHOWN)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the whole model, millions")
    how = (
        "not scaled by a measurement"
        if prediction.scale is None
        else f"scaled by one plan measured on {prediction.text}"
    )
    axes.set_ylabel("expected perplexity, multiple of the original's")
    axes.set_title(f"{_name(forecast)}: expected cost of compression ({how})", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=150)


def _parameters(forecast: Forecast) -> int:
    """Return the parameters of the whole model with the plan."""
    removed = forecast.plan.ratio * forecast.dense_multiplications
    return round(forecast.dense_parameters - removed)


def _name(forecast: Forecast) -> str:
    planned_for = forecast.plan.planned_for
    return "model" if planned_for is None else Path(planned_for.model).stem or planned_for.model
