"""The picture of a sharing study: a map of all pairs of layers per role, and neighbours against the ratio."""

from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np

from basis_sharing.results.study import RoleAtRatio, RoleStudy, SharingStudy

_COLUMNS = 4
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#333333", "#8c6d31")
_MARKERS = "os^Dvp*Xh"
_NARROWEST, _WIDEST = log2(1.1), log2(2)


def draw_study(study: SharingStudy, path: Path, *, title: str, ratio: float) -> None:
    """Draw a study as PNG.

    Args:
        study: What to draw.
        path: The file.
        title: Subject of the study, e.g. the name of the model.
        ratio: The studied ratio that the maps show.

    Raises:
        PlanError: The ratio was not studied.
        OSError: The file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    position = study.position(ratio)
    columns = min(_COLUMNS, len(study.roles))
    rows = ceil(len(study.roles) / columns)
    width = max(3.1 * columns + 1.1, 9.0)
    heights = [0.7 + 3.05 * rows, 3.4]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    figure.set_facecolor("white")
    panels: Any = figure.subfigures(2, 1, height_ratios=heights, hspace=0.03)
    maps, lines = panels
    maps.suptitle(
        f"{title}: one basis for two layers against two private ones of the same stored size, at ratio {ratio:g}\n"
        "blue with a dot: sharing loses less; red: it loses more; grey: not compared",
        fontsize=11,
    )
    limit, extend = _limit(study, position)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.82")
    axes = maps.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.06, "wspace": 0.04})
    image: Any = None
    for place, role in zip(axes.flat, study.roles, strict=False):
        image = _draw_map(place, role, position, colours, limit)
    for place in axes.flat[len(study.roles) :]:
        place.set_axis_off()
    bar = maps.colorbar(image, ax=axes, extend=extend, shrink=0.9, pad=0.015)
    ticks = [limit * step for step in (-1, -0.5, 0, 0.5, 1)]
    bar.set_ticks(ticks, labels=[f"{2**tick:.2f}" for tick in ticks])
    bar.set_label("expected loss, shared / private", fontsize=9)

    _draw_lines(lines, study, ratio)
    figure.savefig(path, dpi=150, format="png")


def _limit(study: SharingStudy, position: int) -> tuple[float, str]:
    """Return the limit of the colour scale, as log2 of a quotient, and the ends at which values exceed it."""
    values = np.concatenate([_log_quotients(role, position).ravel() for role in study.roles])
    values = values[np.isfinite(values)]
    if not len(values):
        return _NARROWEST, "neither"
    # Distant pairs with much larger losses must not reduce the contrast of the important differences.
    limit = float(np.clip(np.quantile(np.abs(values), 0.9), _NARROWEST, _WIDEST))
    below, above = bool((values < -limit).any()), bool((values > limit).any())
    return limit, {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def _log_quotients(role: RoleStudy, position: int) -> Any:
    return np.log2(np.array(role.quotients[position], dtype=float))


def _draw_map(axes: Any, role: RoleStudy, position: int, colours: Any, limit: float) -> Any:
    values = np.ma.masked_invalid(_log_quotients(role, position))
    image = axes.imshow(values, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", origin="lower")
    below = np.argwhere(values.filled(1) < 0)
    if len(below):
        axes.plot(below[:, 1], below[:, 0], "o", color="black", markersize=max(1.2, 20 / len(role.layers)) / 1.6)
    at = role.summaries[position]
    axes.set_title(role.name, fontsize=11, fontweight="bold", loc="left", pad=5)
    axes.set_title(f"{at.pairs_paying} of {at.pairs} pairs lose less", fontsize=8, loc="right", color="0.3", pad=5)
    step = max(1, ceil(len(role.layers) / 8))
    ticks = range(0, len(role.layers), step)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(list(ticks), labels=[str(role.layers[tick]) for tick in ticks], fontsize=8)
    axes.set_xlabel("layer", fontsize=8, labelpad=1)
    axes.set_ylabel("layer", fontsize=8, labelpad=1)
    axes.tick_params(length=2, pad=2)
    return image


def _draw_lines(panel: Any, study: SharingStudy, ratio: float) -> None:
    best, middle = panel.subplots(1, 2, sharey=True)
    drawn: list[float] = []
    for axes, heading, value in (
        (best, "best pair of neighbours (below 1 sharing loses less)", lambda at: at.best_neighbour),
        (middle, "median pair of neighbours", lambda at: at.median_neighbour),
    ):
        drawn += _draw_quotients(axes, study, value)
        axes.axhline(1, color="black", linewidth=1)
        axes.axvline(ratio, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(heading, fontsize=10, loc="left")
        axes.set_xlabel("ratio: fraction of the parameters removed", fontsize=9)
        axes.set_xticks(study.ratios, labels=[f"{r:g}" for r in study.ratios], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(alpha=0.25)
    best.set_ylabel("expected loss, shared / private", fontsize=9)
    _scale(best, drawn)
    if drawn:
        handles, labels = best.get_legend_handles_labels()
        panel.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)


def _draw_quotients(axes: Any, study: SharingStudy, value: Callable[[RoleAtRatio], float | None]) -> list[float]:
    """Draw one line per role, and return the values drawn."""
    drawn: list[float] = []
    for number, role in enumerate(study.roles):
        points = [(at.ratio, quotient) for at in role.summaries if (quotient := value(at)) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=role.name,
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4.5,
                linewidth=1.5,
            )
            drawn += [quotient for _, quotient in points]
    return drawn


def _scale(axes: Any, drawn: list[float]) -> None:
    """Set a logarithmic vertical scale that includes 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = min([*drawn, 1.0]), max([*drawn, 1.0])
    low, high = max(low, 2.0**-6), min(high, 2.0**6)
    margin = max((high / low) ** 0.08, 1.02)
    axes.set_yscale("log", base=2)
    axes.set_ylim(low / margin, high * margin)
    wide = high / low > 4
    axes.yaxis.set_major_locator(LogLocator(base=2) if wide else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda quotient, _: f"{quotient:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
