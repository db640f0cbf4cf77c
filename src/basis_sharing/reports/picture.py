"""What all pictures of a report have in common: one look, and the same bytes for the same input."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Colours that stay apart for all common forms of colour blindness."""

FONT = 10
_DPI = 160
_LOOK = {"svg.fonttype": "path", "svg.hashsalt": "basis-sharing", "font.family": "DejaVu Sans", "font.size": FONT}


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Attributes:
        name: Name of its files, without ending.
        alt: What it shows, for those who cannot see it.
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
        """Return the picture as ``"svg"``, whose text is outlines and needs no font, or as ``"png"``."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_LOOK}):
            figure = Figure(figsize=(self.width, self.height), layout="constrained", facecolor="white")
            self.draw(figure)
            target = BytesIO()
            # A date or a version would make other bytes of the same input.
            stamps = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(target, format=kind, dpi=_DPI, metadata=stamps)
        return target.getvalue()


def bare(axes: Any) -> None:
    """Take away the frame of axes and their tick marks."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
