"""The mean absolute activation of every input feature (method ``asvd``, Yuan et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from basis_sharing.calibration.moments import Moments, Statistics
from basis_sharing.linalg.whitening import Whitening, diagonal_whitening
from basis_sharing.weightings.base import Weighting, register


@register
@dataclass
class MeanAbsolute(Weighting):
    """S = diag(mean |x|)^(1/2), H = I."""

    name: ClassVar[str] = "mean-absolute"
    statistics: ClassVar[Statistics] = Statistics(abs_sum=True)

    def _from_moments(self, moments: Moments) -> Whitening:
        assert moments.abs_sum is not None
        return diagonal_whitening((moments.abs_sum / moments.tokens).sqrt().to(self.device))
