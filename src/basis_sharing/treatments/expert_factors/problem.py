"""The matrices of the experts of one block, each with its weightings.

All experts of a block read one input, so one second moment is that of all of them; on the side of the neurons, second
moments of every expert would be too many, and squares take their place. An expert that is visited more has larger ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basis_sharing.linalg.whitening import Whitening, diagonal_whitening
from basis_sharing.models.decoder import module
from basis_sharing.models.family import Experts
from basis_sharing.runtime.experts_basis_sharing import expert_matrix
from basis_sharing.weightings.base import Weighting
from basis_sharing.weightings.loss import GRADIENT_SHRINKAGE, INPUT_SHRINKAGE

_SEEN_ENOUGH = 32  # tokens


@dataclass(frozen=True)
class ExpertMatrix:
    """A matrix of one expert, as a :class:`~basis_sharing.linalg.truncation.Member`.

    W, S and H are computed on access and not kept.

    Attributes:
        weighting: The weighting.
        model: The dense model.
        experts: The experts of the block.
        name: Name of the weight.
        number: Index of the expert.
    """

    weighting: Weighting
    model: Any
    experts: Experts
    name: str
    number: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.experts.sizes[self.name]

    @property
    def reads(self) -> bool:
        """Whether it reads the input of the experts, and not neurons."""
        return self.name == self.experts.reading

    @property
    def W(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """The weight, shape ``[d_in, d_out]``, fp64."""
        found = expert_matrix(module(self.model, self.experts.name), self.name, self.number)
        return found.detach().to(self.weighting.device, torch.float64)

    @property
    def S(self) -> Whitening:  # noqa: N802 - the mathematics' name
        """Weighting of the input side."""
        if self.reads:
            return self.weighting.whitening((self.experts.reads,))
        return diagonal_whitening(self._squares(INPUT_SHRINKAGE).sqrt())

    @property
    def G(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """S^T S, shape ``[d_in, d_in]``, fp64."""
        if self.reads:
            return self.weighting.second_moment((self.experts.reads,))
        return torch.diag(self._squares(INPUT_SHRINKAGE))

    @property
    def H(self) -> Tensor | None:  # noqa: N802 - the mathematics' name
        """Weighting of the output side, ``[d_out, d_out]``, fp64."""
        if self.reads:
            return torch.diag(self._squares(GRADIENT_SHRINKAGE) / 2)
        return self.weighting.output_weighting(self.experts.writes)

    @property
    def key(self) -> object:
        """Name of the matrix."""
        return f"{self.experts.name}.{self.number}.{self.name}"

    @property
    def input_key(self) -> object:
        """The experts for matrices that read their input; the matrix for others."""
        return self.experts.reads.name if self.reads else self.key

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H."""
        if self.reads:
            return self._squares(GRADIENT_SHRINKAGE).mean().item() / 2
        return self.weighting.output_scale(self.experts.writes)

    def _squares(self, share: float) -> Tensor:
        """Return the mean squares of its features per token of the text, shrunk towards their mean, ``[features]``.

        Those of an expert that was visited by few tokens are shrunk towards those of all experts.
        """
        moments = self.weighting.moments
        assert moments is not None
        found = moments.get(self.experts.block, f"{self.experts.name}.{self.name}")
        visits = moments.get(self.experts.block, self.experts.reads.input).visits
        assert found.squares is not None
        squares = found.squares.to(self.weighting.device)
        count = 0 if visits is None else int(visits[self.number])
        few = _SEEN_ENOUGH / (count + _SEEN_ENOUGH)
        own = ((1 - few) * squares[self.number] + few * squares.mean(0)) / max(1, found.tokens)
        return (1 - share) * own + share * own.mean()


def matrices(weighting: Weighting, model: Any, experts: Experts, name: str) -> Iterator[ExpertMatrix]:
    """Yield a matrix of every expert of a block."""
    for number in range(experts.count):
        yield ExpertMatrix(weighting, model, experts, name, number)
