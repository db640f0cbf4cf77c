"""The planner's weighting: second moments of inputs and of loss gradients, in nats per token.

The loss rise is estimated as dL ~ 1/2 tr(dW^T G dW H) with G = E[x^T x] and H = E[g^T g], g the gradient of the loss at
the output: a Kronecker-factored second-order estimate. Both matrices are shrunk towards their mean diagonals to reduce
the sampling error of a finite calibration text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from basis_sharing.calibration.moments import Moments, Statistics
from basis_sharing.linalg.whitening import LEAST_SCALE, Whitening, cholesky_whitening
from basis_sharing.models.family import Projection
from basis_sharing.weightings.base import Weighting, register, shrink_

INPUT_SHRINKAGE = 0.01
GRADIENT_SHRINKAGE = 0.1


@dataclass
class InNats(Weighting):
    """G = E[x^T x] of every layer separately; subclasses define H."""

    statistics: ClassVar[Statistics] = Statistics(gram=True, abs_sum=True)
    in_nats: ClassVar[bool] = True

    def second_moment(self, inputs: Sequence[Projection]) -> Tensor:
        """Return G, which shrinking has made positive definite; that of an input that is always zero is tiny."""
        assert self.moments is not None
        G = self._shrunk(self.moments.total((p.block, p.input) for p in inputs))
        G.diagonal().clamp_min_(LEAST_SCALE)
        return G

    def _from_moments(self, moments: Moments) -> Whitening:
        return cholesky_whitening(self._shrunk(moments))

    def _shrunk(self, moments: Moments) -> Tensor:
        assert moments.gram is not None
        G = moments.gram.to(self.device, torch.float64, copy=True)
        return shrink_(G.div_(moments.tokens), INPUT_SHRINKAGE)


@register
@dataclass
class Loss(InNats):
    """H = E[g^T g] / 2."""

    name: ClassVar[str] = "loss"
    gradients: ClassVar[bool] = True

    def output_weighting(self, projection: Projection) -> Tensor | None:
        """Return H, shape ``[d_out, d_out]``, fp64."""
        gradient, tokens = self._gradient(projection)
        return shrink_(gradient.to(self.device, torch.float64, copy=True).div_(2 * tokens), GRADIENT_SHRINKAGE)

    def output_scale(self, projection: Projection) -> float | None:
        """Return the mean of the diagonal of H."""
        gradient, tokens = self._gradient(projection)
        return gradient.diagonal().double().mean().item() / (2 * tokens)

    def _gradient(self, projection: Projection) -> tuple[Tensor, int]:
        """Return the sum of g^T g, shape ``[d_out, d_out]``, and the number of tokens."""
        assert self.moments is not None
        moments = self.moments.get(projection.block, projection.name)
        assert moments.gradient is not None
        return moments.gradient, moments.tokens
