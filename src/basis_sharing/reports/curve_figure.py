"""The picture of perplexity against size: the original, the expectation of the plan, and measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from basis_sharing.reports.picture import FONT, OKABE_ITO, Picture
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.words import without_folders

_MARKERS = "os^Dv"
_LOGARITHMIC_FROM = 3.0


@dataclass(frozen=True)
class CurvePoint:
    """One point of the curve.

    Attributes:
        label: Label of the point.
        parameters: Parameters of the whole model.
        quotient: Perplexity as a multiple of the original's.
        text: The text of the measurement; None for an expectation.
        spread: Lowest and highest quotient within one standard error of the expectation; None: unknown.
        own: Whether it belongs to the model that the report is about.
    """

    label: str
    parameters: int
    quotient: float
    text: str | None
    spread: tuple[float, float] | None = None
    own: bool = True


def points_of(
    result: CompressionResult, measured: Sequence[tuple[Perplexity, Perplexity]], *, label: str, own: bool = True
) -> list[CurvePoint]:
    """Return the measurements of a compression, and the expectation of its plan, as points of the curve.

    Args:
        result: The result of the compression.
        measured: Perplexities of the original and of the compressed model.
        label: Name of the compressed model.
        own: Whether the report is about it; only then the expectation is included.
    """
    size = result.after.parameters
    points = [
        CurvePoint(label, size, small.perplexity / dense.perplexity, dense.text, own=own) for dense, small in measured
    ]
    prediction = result.prediction
    if prediction is not None and own:
        spread = None
        if prediction.scale is not None and prediction.scale_error is not None:
            low, high = (prediction.scale + sign * prediction.scale_error for sign in (-1, 1))
            spread = _multiple(prediction.loss * low), _multiple(prediction.loss * high)
        points.append(CurvePoint("expected by the plan", size, _multiple(prediction.nats_per_token), None, spread))
    return points


def curve_picture(original: int, points: Sequence[CurvePoint]) -> Picture:
    """Return the picture of perplexity against size.

    Args:
        original: Parameters of the original.
        points: At least one point.
    """
    texts = list(dict.fromkeys(point.text for point in points if point.text is not None))
    unit, divisor = _unit(original)
    labels = 1 + len(texts) + len({(p.text is None, p.own) for p in points})

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axhline(1, color="0.75", linewidth=0.8, zorder=0)
        axes.plot([original / divisor], [1], "*", color="black", markersize=13, label="original", zorder=4)
        for number, text in enumerate(texts):
            _draw_measured(axes, original, [p for p in points if p.text == text], number, divisor)
        for point in (p for p in points if p.text is None):
            _draw_expected(axes, point, divisor)
        _scale(axes, [1.0, *(p.quotient for p in points)])
        axes.set_xlim(0, 1.12 * original / divisor)
        axes.set_xlabel(f"parameters of the whole model, {unit}", fontsize=FONT)
        axes.set_ylabel("perplexity, multiple of the original's", fontsize=FONT)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside lower center", fontsize=FONT, frameon=False)

    described = "; ".join(
        f"{p.label}{f' on {p.text}' if p.text else ''}: {p.parameters:,} parameters, {p.quotient:.3f} times the "
        "perplexity"
        for p in points
    )
    return Picture(
        "perplexity",
        f"Perplexity against size. Original: {original:,} parameters. {described}.",
        5.6,
        3.2 + 0.2 * labels,
        draw,
    )


def _draw_measured(axes: Any, original: int, points: Sequence[CurvePoint], number: int, divisor: float) -> None:
    """Draw the measurements on the text with this ``number``, with a line from the original to the report's model."""
    colour, marker = OKABE_ITO[number % len(OKABE_ITO)], _MARKERS[number % len(_MARKERS)]
    for p in (p for p in points if p.own):
        line = [original / divisor, p.parameters / divisor], [1.0, p.quotient]
        axes.plot(*line, color=colour, linewidth=1.2, alpha=0.6)
    for own, name in (
        (True, f"measured on {without_folders(points[0].text or '')}"),
        (False, "other compressions of the original" if number == 0 else None),
    ):
        places = [(p.parameters / divisor, p.quotient) for p in points if p.own is own]
        if places:
            style = {"markersize": 10} if own else {"markerfacecolor": "white"}
            axes.plot(*zip(*places, strict=True), marker, color=colour, label=name, zorder=3, **style)
    for p in points:
        label, weight = (_times(p.quotient), "bold") if p.own else (p.label, "normal")
        place = (p.parameters / divisor, p.quotient)
        axes.annotate(label, place, (-9, 0), textcoords="offset points", ha="right", va="center", weight=weight)


def _draw_expected(axes: Any, point: CurvePoint, divisor: float) -> None:
    """Draw the expectation of the plan with its standard error."""
    place = point.parameters / divisor
    if point.spread is not None:
        axes.plot([place, place], point.spread, color="#d55e00", linewidth=2, alpha=0.7)
    axes.plot([place], [point.quotient], "D", color="#d55e00", markerfacecolor="white", markersize=9,
              markeredgewidth=2, label=f"{point.label}: {_times(point.quotient)}", zorder=5)  # fmt: skip


def _scale(axes: Any, quotients: Sequence[float]) -> None:
    """Set the vertical scale: logarithmic if the largest quotient would hide the others."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if max(quotients) > _LOGARITHMIC_FROM:
        axes.set_yscale("log")
    else:
        margin = max(0.25 * (max(quotients) - min(quotients)), 0.02)
        axes.set_ylim(min(quotients) - margin, max(quotients) + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} x"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _multiple(nats: float) -> float:
    return exp(min(nats, 700.0))


def _times(quotient: float) -> str:
    return f"{quotient:.3f} x" if quotient < 10 else f"{quotient:,.4g} x"


def _unit(parameters: int) -> tuple[str, float]:
    for name, divisor in (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3)):
        if parameters >= divisor:
            return name, divisor
    return "numbers", 1.0
