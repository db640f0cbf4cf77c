"""The experts of one block with the weightings of what they read and write.

All experts of a block read one input x and write one output y. A smaller width replaces x by x P and y by y Q, with
projections P = A C and Q = D Z of lower rank, so what it loses is what low-rank factors of two identity matrices lose:
the first with the second moment of x, and that of the gradient by x through the experts, the second with those of y.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basis_sharing.linalg.truncation import Member
from basis_sharing.models.decoder import module
from basis_sharing.models.family import Experts
from basis_sharing.runtime.experts_basis_sharing import width_axes
from basis_sharing.weightings.base import WeightedProjection, Weighting


@dataclass(frozen=True)
class Identity(WeightedProjection):
    """The identity before or after experts, as a :class:`~basis_sharing.linalg.truncation.Member`."""

    @property
    def W(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """The identity, shape ``[d_in, d_in]``, fp64."""
        return torch.eye(self.projection.d_in, dtype=torch.float64, device=self.weighting.device)


@dataclass(frozen=True)
class Around:
    """The experts of one block with their weightings.

    Attributes:
        reads: The identity before them.
        writes: The identity after them.
        weights: The parameters of their module by name.
        axes: The axes of these parameters that have the width of the model.
    """

    reads: Member
    writes: Member
    weights: Mapping[str, Tensor]
    axes: Mapping[str, int]


def around(weighting: Weighting, model: Any, experts: Experts) -> Around:
    """Return the experts of one block with their weightings."""
    found = module(model, experts.name)
    reads, writes = (Identity(weighting, model, side, (side,)) for side in (experts.reads, experts.writes))
    weights = {name: parameter.detach() for name, parameter in found.named_parameters()}
    return Around(reads, writes, weights, width_axes(found, model.config.get_text_config()))
