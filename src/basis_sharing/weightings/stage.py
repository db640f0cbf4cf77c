"""The stage of a run that collects the statistics of its weighting."""

from collections.abc import Iterable
from contextlib import ExitStack

from basis_sharing.calibration.text import CalibrationText
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.weightings.base import Weighting


class Collect:
    """Collect the statistics that a weighting needs.

    Args:
        kind: The weighting.
        text: The calibration text; None where the weighting needs none.

    Attributes:
        weighting: The weighting with its statistics, until :meth:`release`.
    """

    weighting: Weighting

    def __init__(self, kind: type[Weighting], text: CalibrationText | None) -> None:
        self.kind, self.text = kind, text
        self._held = ExitStack()

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Say what the weighting's statistics need."""
        return self.kind.needs(shapes)

    def run(self, run: Run) -> None:
        """Collect them; they are released when the run ends at the latest."""
        run.stack.callback(self.release)
        self.weighting = self._held.enter_context(self.kind.collected(run, self.text))

    def release(self) -> None:
        """Give up the statistics and the memory they take."""
        self._held.close()
        if hasattr(self, "weighting"):
            del self.weighting
