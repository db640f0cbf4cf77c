"""No weighting: the plain singular value decomposition (method ``svd``), which needs no calibration text."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self

from basis_sharing.calibration.moments import Statistics
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.linalg.whitening import IdentityWhitening, Whitening
from basis_sharing.models.family import Projection
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.weightings.base import Weighting, register


@register
@dataclass
class Unweighted(Weighting):
    """G = I and H = I."""

    name: ClassVar[str] = "none"
    statistics: ClassVar[Statistics] = Statistics()
    whitens: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def collected(cls, run: Run, text: CalibrationText | None) -> Iterator[Self]:
        """Yield the weighting, without collecting anything."""
        yield cls(device=run.machine.algebra)

    @classmethod
    def needs(cls, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: there are no statistics to collect."""
        return ()

    def whitening(self, inputs: Sequence[Projection]) -> Whitening:
        """Return S = I."""
        return IdentityWhitening()
