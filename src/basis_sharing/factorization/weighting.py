"""From calibration statistics to the weighting of a group's input side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.whitening import (
    CholeskyWhitening,
    IdentityWhitening,
    Whitening,
    cholesky_whitening,
    diagonal_whitening,
)
from basis_sharing.models.family import Projection
from basis_sharing.presets import InputWeighting


@dataclass
class InputWhitening:
    """The whitening S of groups of projections, for one weighting.

    The statistics of a group are the sums over its members (Basis Sharing, section 3.2). Roles that read one input
    come one after another, so the last whitening is remembered.

    Attributes:
        weighting: Which statistics S is made from.
        moments: Moments of the inputs, for the weightings that need them.
        fisher: Fisher information of the input features per projection, for ``fisher``.
    """

    weighting: InputWeighting
    moments: MomentStore | None = None
    fisher: Mapping[str, Tensor] | None = None
    _last: tuple[tuple[tuple[int, str], ...], Whitening] | None = field(default=None, repr=False)

    def of(self, members: Sequence[Projection]) -> Whitening:
        """Return S for the group ``members``.

        Raises:
            NumericalError: The statistics contain NaN or infinity.
        """
        if self.weighting == InputWeighting.NONE:
            return IdentityWhitening()
        if self.weighting == InputWeighting.FISHER:
            assert self.fisher is not None
            return diagonal_whitening(torch.stack([self.fisher[p.name] for p in members]).sum(0).sqrt())
        key = tuple((p.block, p.input) for p in members)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._from_moments(key))
        return self._last[1]

    def _from_moments(self, key: tuple[tuple[int, str], ...]) -> Whitening:
        assert self.moments is not None
        total = self.moments.total(key)
        if self.weighting == InputWeighting.SECOND_MOMENT:
            assert total.gram is not None
            return cholesky_whitening(total.gram)
        assert total.abs_sum is not None
        return diagonal_whitening((total.abs_sum / total.tokens).sqrt())


def ridge_of(whitening: Whitening) -> float:
    """Return the relative ridge a whitening needed, 0 for none."""
    return whitening.ridge if isinstance(whitening, CholeskyWhitening) else 0.0
