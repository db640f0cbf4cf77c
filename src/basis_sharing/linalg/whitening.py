"""Weightings of the input side: matrices S such that ||S dW||^2 is the loss to minimise.

Method ``svd`` uses S = I, ``fwsvd`` and ``asvd`` a diagonal S, ``svd-llm`` and ``basis-sharing`` the Cholesky factor of
the second moment of the inputs. All computations are in fp64.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError

_FIRST_RIDGE = 1e-12
_LAST_RIDGE = 1.0
LEAST_SCALE = 1e-30  # of inputs that are always zero, e.g. of the output projection where attention is switched off


class Whitening(Protocol):
    """An invertible S of shape ``[d_in, d_in]``."""

    def apply(self, W: Tensor) -> Tensor:
        """Return S W for W of shape ``[d_in, n]``."""
        ...

    def apply_transposed(self, M: Tensor) -> Tensor:
        """Return S^T M for M of shape ``[d_in, n]``."""
        ...

    def solve(self, M: Tensor) -> Tensor:
        """Return S^-1 M for M of shape ``[d_in, n]``."""
        ...


@dataclass(frozen=True)
class IdentityWhitening:
    """S = I, as in the plain singular value decomposition."""

    def apply(self, W: Tensor) -> Tensor:
        """Return W."""
        return W

    def apply_transposed(self, M: Tensor) -> Tensor:
        """Return M."""
        return M

    def solve(self, M: Tensor) -> Tensor:
        """Return M."""
        return M


@dataclass(frozen=True)
class DiagonalWhitening:
    """S = diag(s).

    Attributes:
        scale: s, shape ``[d_in]``, all positive.
    """

    scale: Tensor

    def apply(self, W: Tensor) -> Tensor:
        """Return diag(s) W."""
        return self.scale[:, None] * W

    def apply_transposed(self, M: Tensor) -> Tensor:
        """Return diag(s) M."""
        return self.scale[:, None] * M

    def solve(self, M: Tensor) -> Tensor:
        """Return diag(s)^-1 M."""
        return M / self.scale[:, None]


@dataclass(frozen=True)
class CholeskyWhitening:
    """S upper triangular with S^T S = G + ridge * mean(diag G) * I.

    Attributes:
        factor: S, shape ``[d_in, d_in]``.
        ridge: The relative ridge that was added; 0 if G is positive definite.
    """

    factor: Tensor
    ridge: float

    @cached_property
    def moment(self) -> Tensor:
        """S^T S."""
        return self.factor.T @ self.factor

    def apply(self, W: Tensor) -> Tensor:
        """Return S W."""
        return self.factor @ W

    def apply_transposed(self, M: Tensor) -> Tensor:
        """Return S^T M."""
        return self.factor.T @ M

    def solve(self, M: Tensor) -> Tensor:
        """Return S^-1 M by back substitution."""
        solution: Tensor = torch.linalg.solve_triangular(self.factor, M, upper=True)
        return solution


def cholesky_whitening(G: Tensor) -> CholeskyWhitening:
    """Return the whitening of a second moment (SVD-LLM; Basis Sharing, section 3.2).

    Args:
        G: Symmetric second moment, shape ``[d_in, d_in]``; any float dtype.

    Raises:
        NumericalError: G contains NaN or infinity, or no ridge up to its mean diagonal makes it positive definite.
    """
    G = G.double()
    if not torch.isfinite(G).all():
        raise NumericalError("a second moment contains NaN or infinity: calibrate in float32.")
    factor, ridge = positive_cholesky(G)
    return CholeskyWhitening(factor=factor.T, ridge=ridge)


def positive_cholesky(G: Tensor) -> tuple[Tensor, float]:
    """Return the lower Cholesky factor of G plus a ridge, and the relative ridge.

    The ridge is 0 or the smallest power of ten, in units of the mean diagonal of G, that makes G positive definite.

    Raises:
        NumericalError: No ridge up to the mean diagonal suffices.
    """
    factor, info = torch.linalg.cholesky_ex(G)
    if info.item() == 0:
        return factor, 0.0
    scale = G.diagonal().mean().clamp_min(LEAST_SCALE)
    ridge = _FIRST_RIDGE
    while ridge <= _LAST_RIDGE:
        shifted = G.clone()
        shifted.diagonal().add_(ridge * scale)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info.item() == 0:
            return factor, ridge
        ridge *= 10
    raise NumericalError("a second moment is indefinite beyond repair: calibrate with more text, in float32.")


def diagonal_whitening(scale: Tensor) -> DiagonalWhitening:
    """Return the whitening with one positive number per input feature.

    Args:
        scale: Shape ``[d_in]``, non-negative. Entries below a millionth of the mean are raised to it; if all are 0,
            they become 1.

    Raises:
        NumericalError: The scale contains NaN or infinity.
    """
    scale = scale.double()
    if not torch.isfinite(scale).all():
        raise NumericalError("the statistics of an input contain NaN or infinity: calibrate in float32.")
    mean = scale.mean()
    floor = 1e-6 * mean if mean > 0 else torch.ones_like(mean)
    return DiagonalWhitening(scale=torch.maximum(scale, floor))
