"""The stage of a run that collects the statistics for its weighting."""

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
        text: The calibration text; None if the weighting needs none.

    Attributes:
        weighting: The weighting with its statistics, until :meth:`release`.
    """

    weighting: Weighting

    def __init__(self, kind: type[Weighting], text: CalibrationText | None) -> None:
        self.kind, self.text = kind, text
        self._held = ExitStack()

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return the time, memory and disk space that collecting the statistics needs."""
        return self.kind.needs(shapes)

    def run(self, run: Run) -> None:
        """Collect the statistics; they are released when the run ends, if not before."""
        run.stack.callback(self.release)
        self.weighting = self._held.enter_context(self.kind.collected(run, self.text))

    def release(self) -> None:
        """Release the statistics and their memory."""
        self._held.close()
        if hasattr(self, "weighting"):
            del self.weighting
