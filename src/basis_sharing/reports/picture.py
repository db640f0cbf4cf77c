"""The common style of all pictures of a report, which are reproducible byte by byte."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Colours that can be distinguished with all common forms of colour blindness."""

FONT = 10
_DPI = 160
_STYLE = {"svg.fonttype": "path", "svg.hashsalt": "basis-sharing", "font.family": "DejaVu Sans", "font.size": FONT}


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Attributes:
        name: Name of its files, without extension.
        alt: Description for readers who cannot see it.
        width: Width in inches.
        height: Height in inches.
        draw: Draws it on an empty matplotlib figure.
    """

    name: str
    alt: str
    width: float
    height: float
    draw: Callable[[Any], None]

    def rendered(self, kind: str) -> bytes:
        """Return the picture as ``"svg"``, with text as outlines that need no font, or as ``"png"``."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
            figure = Figure(figsize=(self.width, self.height), layout="constrained", facecolor="white")
            self.draw(figure)
            target = BytesIO()
            # A date or a version would make the bytes depend on more than the input.
            stamps = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(target, format=kind, dpi=_DPI, metadata=stamps)
        return target.getvalue()


def bare(axes: Any) -> None:
    """Remove the frame and the tick marks of axes."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
