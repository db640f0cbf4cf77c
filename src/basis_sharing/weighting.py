"""From calibration statistics to the loss that the factors of a group minimise (DESIGN 3.2, 3.6).

Planning measures candidates with it, factorization solves for it: both see one and the same problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.truncation import Weighted
from basis_sharing.linalg.whitening import (
    CholeskyWhitening,
    IdentityWhitening,
    Whitening,
    cholesky_whitening,
    diagonal_whitening,
)
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Projection
from basis_sharing.presets import Weighting

INPUT_SHRINKAGE = 0.01
GRADIENT_SHRINKAGE = 0.1

_Key = tuple[tuple[int, str], ...]


@dataclass
class Weigher:
    """Poses the problem of a group of projections, for one weighting.

    The published methods sum their statistics over a group (Basis Sharing, section 3.2); the planner's weightings keep
    those of every layer apart and count in nats per token.

    Attributes:
        weighting: What errors are weighted with.
        moments: Moments of the inputs, or of the projections for ``loss``.
        fisher: Fisher information of the input features per projection, for ``fisher``.
        sensitivity: Nats per token that a unit of output error costs, per projection, for ``sensitivity``.
    """

    weighting: Weighting
    moments: MomentStore | None = None
    fisher: Mapping[str, Tensor] | None = None
    sensitivity: Mapping[str, float] | None = None
    _remembered: dict[_Key, Whitening] = field(default_factory=dict, repr=False)

    def problem(self, model: Any, members: Sequence[Projection]) -> list[Weighted]:
        """Return the matrices of a group with their weightings, on the CPU in fp64.

        Raises:
            NumericalError: The statistics contain NaN or infinity.
        """
        matrices = [weight(model, projection).double().cpu() for projection in members]
        if self.weighting == Weighting.LOSS:
            return [self._two_sided(W, p) for W, p in zip(matrices, members, strict=True)]
        if self.weighting == Weighting.SENSITIVITY:
            return [self._scaled(W, p) for W, p in zip(matrices, members, strict=True)]
        S = self._summed(members)
        return [Weighted(W, S) for W in matrices]

    def _two_sided(self, W: Tensor, projection: Projection) -> Weighted:
        """Weigh with the second moments of inputs and gradients: 1/2 tr(E^T G E H) nats per token."""
        assert self.moments is not None
        moments = self.moments.get(projection.block, projection.name)
        assert moments.gram is not None and moments.gradient is not None
        H = moments.gradient.double() / (2 * moments.tokens)
        S = self._whitening((projection.block, projection.name), moments.gram / moments.gradient.trace())
        return Weighted(W, S, shrink(H, GRADIENT_SHRINKAGE))

    def _scaled(self, W: Tensor, projection: Projection) -> Weighted:
        """Weigh with the second moment of inputs, and a number for what an error of the output costs."""
        assert self.moments is not None and self.sensitivity is not None
        moments = self.moments.get(projection.block, projection.input)
        assert moments.gram is not None
        S = self._whitening((projection.block, projection.input), moments.gram / moments.tokens)
        return Weighted(W, S, self.sensitivity[projection.name] * torch.eye(projection.d_out, dtype=torch.float64))

    def _whitening(self, key: tuple[int, str], G: Tensor) -> Whitening:
        """Return the whitening of one input; projections that read it get the same object."""
        if (key,) not in self._remembered:
            self._remember((key,), cholesky_whitening(shrink(G.double(), INPUT_SHRINKAGE)))
        return self._remembered[(key,)]
