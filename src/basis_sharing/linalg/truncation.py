"""The best rank-k factors of a matrix under a whitening, from the smaller of two symmetric eigenproblems."""

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.whitening import Whitening


@dataclass(frozen=True)
class Truncation:
    """W ~ B C.

    Attributes:
        basis: B, shape ``[d_in, k]``.
        coefficients: C, shape ``[k, n]``.
        energy: Squared singular values of S W, descending.
    """

    basis: Tensor
    coefficients: Tensor
    energy: Tensor

    @property
    def total(self) -> float:
        """||S W||^2."""
        return self.energy.sum().item()

    @property
    def lost(self) -> float:
        """||S (W - B C)||^2, the tail sum of the squared singular values."""
        return self.energy[self.basis.shape[1] :].sum().item()

    def leading(self, rank: int) -> "Truncation":
        """Return the best factors of a lower rank: the leading columns of B and rows of C."""
        return Truncation(self.basis[:, :rank], self.coefficients[:rank], self.energy)


def truncate(W: Tensor, whitening: Whitening, rank: int) -> Truncation:
    """Minimise ||S (W - B C)|| over all B, C with ``rank`` basis vectors.

    With the singular value decomposition S W = U Sigma V^T the solution is B = S^-1 U_k Sigma_k, C = V_k^T (Basis
    Sharing, equation 5). Only the k leading vectors of one side are needed, and they are eigenvectors of
    (S W)(S W)^T, ``[d_in, d_in]``, or of (S W)^T (S W), ``[n, n]``: the smaller one is decomposed, never the wide
    matrix itself.

    Args:
        W: Shape ``[d_in, n]``, fp64.
        whitening: S.
        rank: Number of basis vectors, at most ``d_in``. Beyond the rank of W the extra vectors are harmless.

    Raises:
        NumericalError: W contains NaN or infinity.
    """
    d_in, n = W.shape
    if not torch.isfinite(W).all():
        raise NumericalError("a weight matrix contains NaN or infinity: the model is damaged.")
    if n >= d_in:
        # S (W W^T) S^T: the wide matrix is multiplied once here and once, at rank size, for the coefficients.
        half = whitening.apply(W @ W.T)
        energy, vectors = torch.linalg.eigh(whitening.apply(half.T))
    else:
        M = whitening.apply(W)
        energy, vectors = torch.linalg.eigh(M.T @ M)
    energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)[:, :rank]
    if n >= d_in:
        # Directions without energy would divide 0 by 0; any scale between B and C is as good for them.
        sigma = energy[:rank].sqrt()
        sigma = torch.where(sigma > 1e-12 * sigma[0], sigma, torch.ones_like(sigma))
        basis = whitening.solve(vectors * sigma)
        coefficients = whitening.apply_transposed(vectors / sigma).T @ W
    else:
        basis = whitening.solve(M @ vectors)
        coefficients = vectors.T.contiguous()
        if rank > n:
            basis = torch.nn.functional.pad(basis, (0, rank - n))
            coefficients = torch.nn.functional.pad(coefficients, (0, 0, 0, rank - n))
    return Truncation(basis=basis, coefficients=coefficients, energy=energy)
