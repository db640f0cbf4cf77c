"""The second moment of the inputs (methods ``svd-llm`` and ``basis-sharing``).

SVD-LLM (Wang et al. 2024) whitens with the Cholesky factor of G = sum of x^T x; Basis Sharing (section 3.2) sums G
over the layers of a group.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from basis_sharing.calibration.moments import Moments
from basis_sharing.linalg.whitening import Whitening, cholesky_whitening
from basis_sharing.weightings.base import Weighting, register


@register
@dataclass
class SecondMoment(Weighting):
    """G = sum of x^T x over the tokens, H = I."""

    name: ClassVar[str] = "second-moment"

    def _from_moments(self, moments: Moments) -> Whitening:
        assert moments.gram is not None
        return cholesky_whitening(moments.gram.to(self.device, torch.float64, copy=True))
