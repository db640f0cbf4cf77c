"""The picture of a forecast: expected perplexity against size for every method, and against speed."""

from math import exp
from pathlib import Path
from typing import Any

from basis_sharing.results.forecast import Forecast

_STYLES: dict[str, dict[str, Any]] = {"auto": {"color": "#0b5fa5", "linewidth": 2.5, "marker": "o", "zorder": 5}}
_OTHERS = ["#e69f00", "#009e73", "#cc79a7", "#8c564b", "#7f7f7f"]
_BY_SPEED, _CHOSEN = "#d1495b", "#c23b22"
_MOST_SHOWN = 20.0
_LINES = {"prefill": "-", "decode": "--"}


def draw_forecast(forecast: Forecast, path: Path) -> None:
    """Draw expected perplexity as a multiple of the original's against the size and the speed of the model, as PNG.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    prediction = forecast.plan.prediction
    assert prediction is not None
    timed = bool(prediction.speeds)
    drawn = [
        _draw_sizes,
        *([_draw_bytes] if forecast.bit_points else []),
        *([_draw_speeds] if timed else []),
    ]
    figure = Figure(figsize=(8.5 if len(drawn) == 1 else 6.75 * len(drawn), 5.2), layout="constrained")
    by_size, *others = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for draw, axes in zip(drawn, (by_size, *others), strict=True):
        draw(forecast, axes)
    by_size.set_yscale("log")
    by_size.set_ylim(0.93, _MOST_SHOWN)
    by_size.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    by_size.set_yticks([1, 1.2, 1.5, 2, 3, 5, 10, 20])
    for axes in (by_size, *others):
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9)
    by_size.set_ylabel("expected perplexity, multiple of the original's")
    how = (
        "not scaled by a measurement"
        if prediction.scale is None
        else f"scaled by one plan measured on {prediction.text}"
    )
    by_size.set_title(f"{_name(forecast)}: expected cost of compression\n({how})", fontsize=10, loc="left")
    figure.savefig(path, dpi=150)


def _scale(forecast: Forecast) -> float:
    prediction = forecast.plan.prediction
    return 1.0 if prediction is None or prediction.scale is None else prediction.scale


def _draw_sizes(forecast: Forecast, axes: Any) -> None:
    prediction, scale = forecast.plan.prediction, _scale(forecast)
    assert prediction is not None
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
    axes.plot([_parameters(forecast) / 1e6], [exp(prediction.nats_per_token)], "*", color=_CHOSEN, markersize=14)
    axes.plot([forecast.dense_parameters / 1e6], [1.0], "s", color="black", label="original")
    axes.set_xlabel("parameters of the whole model, millions")


def _draw_bytes(forecast: Forecast, axes: Any) -> None:
    """Draw a curve against bytes for the planner, for its options one by one, and for plain rounding."""
    prediction, scale = forecast.plan.prediction, _scale(forecast)
    assert prediction is not None
    axes.set_prop_cycle(color=_OTHERS)
    for method in dict.fromkeys(point.method for point in forecast.bit_points):
        points = sorted((p.bytes, p.loss * scale) for p in forecast.bit_points if p.method == method)
        points = [(size, loss) for size, loss in points if exp(min(loss, 7)) <= _MOST_SHOWN]
        style = _STYLES.get(method, {"linewidth": 1.3, "marker": "."})
        axes.plot([size / 2**20 for size, _ in points], [exp(loss) for _, loss in points], label=method, **style)
    axes.set_xlabel("bytes of the whole model, MiB")
    axes.set_title("in the same bytes", fontsize=10, loc="left")


def _draw_speeds(forecast: Forecast, axes: Any) -> None:
    """Draw a curve per phase for plans of sizes and for plans of speeds, and the plan in every phase."""
    prediction, scale = forecast.plan.prediction, _scale(forecast)
    assert prediction is not None
    curves = (("planned for size", forecast.points, "#0b5fa5"), ("planned for speed", forecast.speed_points, _BY_SPEED))
    shown = []
    for name, points, color in curves:
        timed = [point for point in points if point.speeds and exp(min(point.loss * scale, 7)) <= _MOST_SHOWN]
        for found in prediction.speeds if timed else ():
            speeds = [point.speeds[found.phase] for point in timed]
            shown += speeds
            losses = [exp(point.loss * scale) for point in timed]
            label = f"{found.phase}, {name}"
            axes.plot(speeds, losses, _LINES[found.phase], label=label, color=color, marker=".", linewidth=1.8)
    for found in prediction.speeds:
        shown.append(found.speed)
        axes.plot([found.speed], [exp(prediction.nats_per_token)], "*", color=_CHOSEN, markersize=14)
    axes.plot([1.0], [1.0], "s", color="black")
    axes.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xlim(min(0.95, min(shown) - 0.05), max(1.2, max(shown) + 0.05))
    axes.set_xlabel("expected speed, multiple of the original's")
    axes.set_title(_what_is_timed(forecast), fontsize=10, loc="left")


def _what_is_timed(forecast: Forecast) -> str:
    prediction = forecast.plan.prediction
    assert prediction is not None
    first = prediction.speeds[0]
    return f"prefill of {first.tokens} tokens, decode at batch {first.batch}; the stars are the plan"


def _parameters(forecast: Forecast) -> int:
    """Return the parameters of the whole model with the plan."""
    removed = forecast.plan.ratio * forecast.dense_multiplications
    return round(forecast.dense_parameters - removed)


def _name(forecast: Forecast) -> str:
    planned_for = forecast.plan.planned_for
    return "model" if planned_for is None else Path(planned_for.model).stem or planned_for.model
