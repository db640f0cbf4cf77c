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

_REMEMBERED_BYTES = 256 * 2**20
_Key = tuple[tuple[int, str], ...]


@dataclass
class Weigher:
    """Poses the problem of a group of projections, for one weighting.

    The published methods sum their statistics over a group (Basis Sharing, section 3.2); the planner's weightings keep
    those of every layer apart and count in nats per token.

    Attributes:
        weighting: What errors are weighted with.
        moments: Moments of the inputs, for ``loss`` also those of the projections' gradients.
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
        matrices = [weight(model, projection).detach().double().cpu() for projection in members]
        if self.weighting == Weighting.LOSS:
            return [self._two_sided(W, p) for W, p in zip(matrices, members, strict=True)]
        if self.weighting == Weighting.SENSITIVITY:
            return [self._scaled(W, p) for W, p in zip(matrices, members, strict=True)]
        S = self._summed(members)
        return [Weighted(W, S) for W in matrices]

    def as_published(self, weighting: Weighting, projections: Sequence[Projection]) -> "Weigher":
        """Return the weigher of a published method, from the same statistics.

        Fisher information is taken from the second moments, as if inputs and gradients were independent.
        """
        if weighting != Weighting.FISHER:
            return Weigher(weighting, moments=self.moments)
        assert self.moments is not None
        fisher = {}
        for p in projections:
            gram = self.moments.get(p.block, p.input).gram
            gradient = self.moments.get(p.block, p.name).gradient if self.weighting == Weighting.LOSS else None
            assert gram is not None
            fisher[p.name] = gram.diagonal().double() * (1.0 if gradient is None else gradient.trace().double())
        return Weigher(weighting, fisher=fisher)

    def _two_sided(self, W: Tensor, projection: Projection) -> Weighted:
        """Weigh with the second moments of inputs and gradients: 1/2 tr(E^T G E H) nats per token."""
        assert self.moments is not None
        moments = self.moments.get(projection.block, projection.name)
        assert moments.gradient is not None
        H = shrink(moments.gradient.double() / (2 * moments.tokens), GRADIENT_SHRINKAGE)
        return Weighted(W, self._own(projection), H)

    def _scaled(self, W: Tensor, projection: Projection) -> Weighted:
        """Weigh with the second moment of inputs, and a number for what a unit of error of the output costs."""
        assert self.sensitivity is not None
        scale = self.sensitivity[projection.name]
        return Weighted(W, self._own(projection), scale * torch.eye(projection.d_out, dtype=torch.float64))

    def _own(self, projection: Projection) -> Whitening:
        """Return the whitening of one input; projections that read it get the same object."""
        key = ((projection.block, projection.input),)
        if key not in self._remembered:
            assert self.moments is not None
            moments = self.moments.get(*key[0])
            assert moments.gram is not None
            G = moments.gram.double() / moments.tokens
            self._remember(key, cholesky_whitening(shrink(G, INPUT_SHRINKAGE)))
        return self._remembered[key]

    def _summed(self, members: Sequence[Projection]) -> Whitening:
        """Return the whitening of the published methods: from statistics summed over the group."""
        if self.weighting == Weighting.NONE:
            return IdentityWhitening()
        if self.weighting == Weighting.FISHER:
            assert self.fisher is not None
            return diagonal_whitening(torch.stack([self.fisher[p.name] for p in members]).sum(0).sqrt())
        key = tuple((p.block, p.input) for p in members)
        if key not in self._remembered:
            self._remember(key, self._from_moments(key))
        return self._remembered[key]

    def _from_moments(self, key: _Key) -> Whitening:
        assert self.moments is not None
        total = self.moments.total(key)
        if self.weighting == Weighting.SECOND_MOMENT:
            assert total.gram is not None
            return cholesky_whitening(total.gram)
        assert total.abs_sum is not None
        return diagonal_whitening((total.abs_sum / total.tokens).sqrt())

    def _remember(self, key: _Key, S: Whitening) -> None:
        """Keep the last ones: groups that read one input, and segments of neighbouring blocks, come together."""
        self._remembered[key] = S
        while len(self._remembered) > 1 and sum(map(_bytes, self._remembered.values())) > _REMEMBERED_BYTES:
            del self._remembered[next(iter(self._remembered))]


def _bytes(S: Whitening) -> int:
    """Return what a whitening may come to hold: its factor and its second moment."""
    return 2 * S.factor.nbytes if isinstance(S, CholeskyWhitening) else 0


def shrink(M: Tensor, share: float) -> Tensor:
    """Return M moved towards its mean diagonal: (1 - share) M + share mean(diag M) I."""
    shrunk = (1 - share) * M
    shrunk.diagonal().add_(share * M.diagonal().mean())
    return shrunk


def ridge_of(whitening: Whitening) -> float:
    """Return the relative ridge a whitening needed, 0 for none."""
    return whitening.ridge if isinstance(whitening, CholeskyWhitening) else 0.0
