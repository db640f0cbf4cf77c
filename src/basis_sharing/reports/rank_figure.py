"""Two maps of a compressed model, layers by roles: the kept fraction of each projection's rank, and shared bases."""

from typing import Any

from basis_sharing.reports.layout import Cell, Layout
from basis_sharing.reports.picture import FONT, OKABE_ITO, Picture, bare
from basis_sharing.results.compression import CompressionResult

_NARROWEST, _WIDEST = 5.6, 18.0
_CELL, _MARGIN = 0.34, 1.2
_NUMBERED_FROM = 0.3  # inches; smaller cells have no number
_LIGHT_FROM = 0.55


def rank_picture(layout: Layout) -> Picture:
    """Return the map of the kept fraction of the full rank."""
    compressed = [cell for cell in layout.cells if cell.label is not None]
    dense = len(layout.cells) - len(compressed)

    def draw(figure: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes, side = _grid(figure, layout)
        colours = colormaps["cividis"]
        for cell in layout.cells:
            x, y = _place(cell, layout)
            if cell.label is None:
                _hatched(axes, x, y)
                continue
            axes.add_patch(_square(x, y, facecolor=colours(cell.kept), edgecolor="white", linewidth=0.7))
            if side >= _NUMBERED_FROM:
                colour = "black" if cell.kept > _LIGHT_FROM else "white"
                size = 8.5 if len(cell.label) < 4 else 6.5
                axes.text(x, y, cell.label, ha="center", va="center", fontsize=size, color=colour)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, location="bottom", shrink=0.5,
                              aspect=30, pad=0.03)  # fmt: skip
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=FONT - 1)
        bar.outline.set_visible(False)
        bar.set_label("kept part of the full rank" + ("; hatched: left dense" if dense else ""), fontsize=FONT)

    alt = (
        f"Map of {layout.layers} layers by the roles {', '.join(layout.roles)}. {_kept_by_role(layout)} "
        f"{dense} of {len(layout.cells)} projections stayed dense."
    )
    return Picture("ranks", alt, *_size(layout, 1.25), draw)


def sharing_picture(layout: Layout, result: CompressionResult) -> Picture:
    """Return the map of the groups: projections that share a basis have one number and colour, and are joined."""
    shared = [index for index, group in enumerate(result.entries) if len(group.members) > 1]
    number = {index: place for place, index in enumerate(shared)}
    dense = any(cell.group is None for cell in layout.cells)
    private = any(cell.group is not None and cell.group not in number for cell in layout.cells)

    def draw(figure: Any) -> None:
        axes, side = _grid(figure, layout)
        centres: dict[int, list[tuple[int, int]]] = {}
        for cell in layout.cells:
            x, y = _place(cell, layout)
            if cell.group is None:
                _hatched(axes, x, y)
            elif cell.group not in number:
                axes.add_patch(_square(x, y, facecolor="#ececec", edgecolor="white", linewidth=0.7))
            else:
                centres.setdefault(cell.group, []).append((x, y))
        for group, places in centres.items():
            colour = OKABE_ITO[number[group] % len(OKABE_ITO)]
            axes.plot(*zip(*places, strict=True), color=colour, linewidth=7, zorder=1, solid_capstyle="round")
            for x, y in places:
                axes.add_patch(_square(x, y, 0.8, facecolor=colour, edgecolor="white", linewidth=0.7, zorder=2))
                if side >= _NUMBERED_FROM:
                    axes.text(x, y, str(number[group] + 1), ha="center", va="center", fontsize=8.5,
                              fontweight="bold", color="white" if colour == OKABE_ITO[0] else "black")  # fmt: skip
        others = ["grey: a basis of its own"] if private else []
        others += ["hatched: left dense"] if dense else []
        figure.supxlabel(f"same number and colour, joined: one basis\n{'; '.join(others)}", fontsize=FONT)

    groups = "; ".join(
        f"group {place + 1}, {result.entries[index].entry.title}: {', '.join(result.entries[index].members)}"
        for index, place in list(number.items())[:12]
    )
    more = f"; and {len(shared) - 12} more" if len(shared) > 12 else ""
    alt = f"Map of {layout.layers} layers by roles with {len(shared)} shared bases. {groups}{more}."
    return Picture("sharing", alt, *_size(layout, 1.15), draw)


def _size(layout: Layout, below: float) -> tuple[float, float]:
    """Return width and height of a map in inches, with ``below`` inches below its cells."""
    width = min(max(_NARROWEST, _MARGIN + _CELL * layout.layers), _WIDEST)
    side = min((width - _MARGIN) / layout.layers, 0.42)
    return width, max(side, 0.26) * len(layout.roles) + below


def _grid(figure: Any, layout: Layout) -> tuple[Any, float]:
    """Return empty axes with layers to the right and roles downwards, and the width of a cell in inches."""
    axes = figure.add_subplot()
    axes.set_xlim(-0.5, layout.layers - 0.5)
    axes.set_ylim(len(layout.roles) - 0.5, -0.5)
    side = (figure.get_figwidth() - _MARGIN) / layout.layers
    step = 1 if layout.layers <= 40 else 5
    axes.set_xticks(range(0, layout.layers, step), labels=range(0, layout.layers, step), fontsize=FONT - 1)
    axes.set_yticks(range(len(layout.roles)), labels=layout.roles, fontsize=FONT + 1)
    axes.set_xlabel("layer", fontsize=FONT)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    bare(axes)
    return axes, side


def _place(cell: Cell, layout: Layout) -> tuple[int, int]:
    return cell.projection.block, layout.roles.index(cell.projection.role)


def _square(x: int, y: int, side: float = 1.0, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, **style)


def _hatched(axes: Any, x: int, y: int) -> None:
    axes.add_patch(_square(x, y, 0.9, facecolor="white", edgecolor="0.55", hatch="////", linewidth=0.5))


def _kept_by_role(layout: Layout) -> str:
    """Return the mean kept part of the full rank of every role, in one sentence."""
    parts = []
    for role in layout.roles:
        kept = [cell.kept for cell in layout.cells if cell.projection.role == role]
        parts.append(f"{role} {sum(kept) / len(kept):.0%}")
    return f"Mean kept part of the full rank: {', '.join(parts)}."
