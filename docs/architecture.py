"""Draw the floors of the package: ``python docs/architecture.py`` writes ``docs/images/architecture.png``.

The floors are the list ``FLOORS`` in ``tests/test_walls.py``, lowest first. The purpose of every folder, and the part
of the package it belongs to, are the tables of ``docs/architecture.md``.
"""

import ast
import re
import textwrap
from hashlib import blake2b
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PICTURE = DOCS / "images" / "architecture.png"
WALLS = DOCS.parent / "tests" / "test_walls.py"

Floors = tuple[tuple[str, ...], ...]

_FILLS = ("#dbe9f6", "#d5efe6", "#fbe9c6", "#f5dfea", "#e4e4e4")
_INK, _QUIET = "#1a1a1a", "#6b6b6b"
_WIDTH, _FLOOR, _TALL_FLOOR, _GAP = 10.0, 0.58, 0.8, 0.07  # inches
_LEFT, _TOP = 0.75, 0.45
_NARROW = 2.6
_CHARACTERS = 14.2  # of the small font in an inch
_TEXT: dict[str, Any] = {"color": _INK, "va": "center"}


def floors() -> Floors:
    """Return the names on every floor, lowest floor first."""
    for node in ast.parse(WALLS.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "FLOORS" for target in targets):
            found: Any = node
            return tuple(tuple(floor) for floor in ast.literal_eval(found.value))
    raise SystemExit(f"{WALLS} has no list FLOORS")


def purposes() -> dict[str, tuple[str, str]]:
    """Return folder -> (part of the package, purpose), as the page has them."""
    found, part = {}, ""
    for line in (DOCS / "architecture.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"#{2,3} (.*)", line):
            part = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| (.*) \|", line):
            found[row[1]] = (part, row[2])
    return found


def fingerprint() -> str:
    """Return a hash of all that the picture shows; the picture has it in its metadata."""
    return blake2b(repr((floors(), sorted(purposes().items()))).encode(), digest_size=8).hexdigest()


def draw(target: Path = PICTURE) -> None:
    """Write the picture."""
    import matplotlib
    from matplotlib.figure import Figure

    stack, about = floors(), purposes()
    fills = dict(zip(dict.fromkeys(part for part, _ in about.values()), _FILLS, strict=True))
    heights = [_TALL_FLOOR if _box_width(names) < _NARROW else _FLOOR for names in stack]
    height = _TOP + sum(heights) + 0.1
    look = {**matplotlib.rcParamsDefault, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(_WIDTH, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, _WIDTH), ylim=(0, height))
        axes.set_axis_off()
        y = 0.1
        for names, floor in zip(stack, heights, strict=True):
            width = _box_width(names)
            for place, name in enumerate(names):
                part, purpose = about[name]
                corner = (_LEFT + place * (width + _GAP), y)
                _box(axes, corner, (width, floor - _GAP), name, purpose, fills[part])
            y += floor
        _arrow(axes, height - _TOP)
        _key(axes, fills, height - _TOP / 2)
        figure.savefig(target, dpi=150, metadata={"Software": None, "Description": fingerprint()})


def _box_width(names: tuple[str, ...]) -> float:
    return (_WIDTH - _LEFT - 0.1 + _GAP) / len(names) - _GAP


def _box(axes: Any, corner: tuple[float, float], size: tuple[float, float], name: str, purpose: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, tall) = corner, size
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch(corner, width, tall, boxstyle=style, facecolor=fill, edgecolor=_QUIET, linewidth=0.8))
    beside = width >= _NARROW  # else the purpose stands below the name
    left = 1.27 if beside else 0.1
    lines = textwrap.wrap(purpose, int((width - left) * _CHARACTERS))
    if len(lines) > 3:
        raise SystemExit(f"the purpose of {name} does not fit into its box: shorten it in docs/architecture.md")
    middle, upper, lower = y + tall / 2, y + 0.8 * tall, y + 0.36 * tall
    axes.text(x + 0.1, middle if beside else upper, name, fontsize=10, fontweight="bold", family="monospace", **_TEXT)
    axes.text(x + left, middle if beside else lower, "\n".join(lines), fontsize=8.2, linespacing=1.2, **_TEXT)


def _arrow(axes: Any, top: float) -> None:
    arrow = {"arrowstyle": "-|>", "color": _QUIET, "linewidth": 1.4}
    axes.annotate("", xy=(0.45, 0.15), xytext=(0.45, top - 0.1), arrowprops=arrow)
    axes.text(0.25, top / 2, "imports go down", rotation=90, fontsize=9, color=_QUIET, ha="center", va="center")


def _key(axes: Any, fills: dict[str, str], y: float) -> None:
    from matplotlib.patches import Rectangle

    step = (_WIDTH - _LEFT) / len(fills)
    for place, (part, fill) in enumerate(fills.items()):
        x = _LEFT + place * step
        axes.add_patch(Rectangle((x, y - 0.07), 0.18, 0.14, facecolor=fill, edgecolor=_QUIET, linewidth=0.8))
        axes.text(x + 0.26, y, part, fontsize=9, **_TEXT)


if __name__ == "__main__":
    draw()
