"""From calibration statistics to the loss that the factors of a group minimise (DESIGN 3.2, 3.6).

Planning measures candidates with it, factorization solves for it: both see one and the same problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import Moments, MomentStore
from basis_sharing.linalg.truncation import Member
from basis_sharing.linalg.whitening import (
    CholeskyWhitening,
    IdentityWhitening,
    Whitening,
    cholesky_whitening,
    diagonal_whitening,
)
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Projection
from basis_sharing.recipe.presets import Weighting

INPUT_SHRINKAGE = 0.01
GRADIENT_SHRINKAGE = 0.1


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
        device: Where the matrices of a problem are made; it must have fp64.
        remembered_bytes: What the whitenings of the last inputs may take, which are looked at again and again.
    """

    weighting: Weighting
    moments: MomentStore | None = None
    fisher: Mapping[str, Tensor] | None = None
    sensitivity: Mapping[str, float] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    remembered_bytes: int = 256 * 2**20
    _remembered: dict[object, Whitening] = field(default_factory=dict, init=False, repr=False)

    def problem(self, model: Any, members: Sequence[Projection]) -> list[Member]:
        """Return the matrices of a group with their weightings, in fp64.

        They are made when they are looked at, which raises :class:`~basis_sharing.errors.NumericalError` where the
        statistics contain NaN or infinity.
        """
        own = self.weighting in (Weighting.LOSS, Weighting.SENSITIVITY)
        return [Posed(self, model, p, (p,) if own else tuple(members)) for p in members]

    def as_published(self, weighting: Weighting, projections: Sequence[Projection]) -> "Weigher":
        """Return the weigher of a published method, from the same statistics.

        Fisher information is taken from the second moments, as if inputs and gradients were independent.
        """
        if weighting != Weighting.FISHER:
            return Weigher(weighting, moments=self.moments, device=self.device)
        assert self.moments is not None
        fisher = {}
        for p in projections:
            gram = self.moments.get(p.block, p.input).gram
            gradient = self.moments.get(p.block, p.name).gradient if self.weighting == Weighting.LOSS else None
            assert gram is not None
            fisher[p.name] = gram.diagonal().double() * (1.0 if gradient is None else gradient.trace().double())
        return Weigher(weighting, fisher=fisher, device=self.device)

    def whitening(self, inputs: Sequence[Projection]) -> Whitening:
        """Return the weighting of the input side from the statistics of what some projections read.

        Projections that read one input get the same object while it is remembered.
        """
        if self.weighting == Weighting.NONE:
            return IdentityWhitening()
        if self.weighting == Weighting.FISHER:
            assert self.fisher is not None
            fisher = torch.stack([self.fisher[p.name] for p in inputs]).sum(0)
            return diagonal_whitening(fisher.sqrt().to(self.device))
        key = tuple((p.block, p.input) for p in inputs)
        if key not in self._remembered:
            assert self.moments is not None
            self._remember(key, self._from_moments(self.moments.total(key)))
        return self._remembered[key]

    def output_weighting(self, projection: Projection) -> Tensor | None:
        """Return H: with it, tr(E^T G E H) counts in nats per token where the weighting does."""
        if self.weighting == Weighting.SENSITIVITY:
            assert self.sensitivity is not None
            identity = torch.eye(projection.d_out, dtype=torch.float64, device=self.device)
            return self.sensitivity[projection.name] * identity
        if self.weighting != Weighting.LOSS:
            return None
        gradient, tokens = self._gradient(projection)
        return shrink_(gradient.to(self.device, torch.float64, copy=True).div_(2 * tokens), GRADIENT_SHRINKAGE)

    def output_scale(self, projection: Projection) -> float | None:
        """Return the mean diagonal of H, without making it."""
        if self.weighting == Weighting.SENSITIVITY:
            assert self.sensitivity is not None
            return self.sensitivity[projection.name]
        if self.weighting != Weighting.LOSS:
            return None
        gradient, tokens = self._gradient(projection)
        return gradient.diagonal().double().mean().item() / (2 * tokens)

    def _gradient(self, projection: Projection) -> tuple[Tensor, int]:
        assert self.moments is not None
        moments = self.moments.get(projection.block, projection.name)
        assert moments.gradient is not None
        return moments.gradient, moments.tokens

    def _from_moments(self, moments: Moments) -> Whitening:
        if self.weighting == Weighting.MEAN_ABSOLUTE:
            assert moments.abs_sum is not None
            return diagonal_whitening((moments.abs_sum / moments.tokens).sqrt().to(self.device))
        assert moments.gram is not None
        G = moments.gram.to(self.device, torch.float64, copy=True)
        if self.weighting == Weighting.SECOND_MOMENT:
            return cholesky_whitening(G)
        return cholesky_whitening(shrink_(G.div_(moments.tokens), INPUT_SHRINKAGE))

    def _remember(self, key: object, S: Whitening) -> None:
        """Keep the last ones: groups that read one input, and segments of neighbouring blocks, come together."""
        self._remembered[key] = S
        while len(self._remembered) > 1 and sum(map(_bytes, self._remembered.values())) > self.remembered_bytes:
            del self._remembered[next(iter(self._remembered))]


@dataclass(frozen=True)
class Posed:
    """A projection in a group, as :class:`~basis_sharing.linalg.truncation.Member`; nothing it makes stays with it."""

    weigher: Weigher
    model: Any
    projection: Projection
    inputs: tuple[Projection, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.projection.d_in, self.projection.d_out

    @property
    def W(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """The weight, shape ``[d_in, d_out]``, fp64."""
        return weight(self.model, self.projection).detach().to(self.weigher.device, torch.float64)

    @property
    def S(self) -> Whitening:  # noqa: N802 - the mathematics' name
        """Weighting of the input side."""
        return self.weigher.whitening(self.inputs)

    @property
    def H(self) -> Tensor | None:  # noqa: N802 - the mathematics' name
        """Weighting of the output side, ``[d_out, d_out]``, fp64; None: the identity."""
        return self.weigher.output_weighting(self.projection)

    @property
    def input_key(self) -> object:
        """The inputs whose statistics weigh it."""
        return tuple((p.block, p.input) for p in self.inputs)

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H; None without H."""
        return self.weigher.output_scale(self.projection)


def _bytes(S: Whitening) -> int:
    """Return what a whitening may come to hold: its factor and its second moment."""
    return 2 * S.factor.nbytes if isinstance(S, CholeskyWhitening) else 0


def shrink_(M: Tensor, share: float) -> Tensor:
    """Move M towards its mean diagonal, (1 - share) M + share mean(diag M) I, in place, and return it."""
    mean = M.diagonal().mean()
    M.mul_(1 - share).diagonal().add_(share * mean)
    return M


def ridge_of(whitening: Whitening) -> float:
    """Return the relative ridge a whitening needed, 0 for none."""
    return whitening.ridge if isinstance(whitening, CholeskyWhitening) else 0.0
