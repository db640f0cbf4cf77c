"""Optimal coefficients for a fixed basis."""

from torch import Tensor, cholesky_solve

from basis_sharing.linalg.whitening import positive_cholesky


def refit_coefficients(basis: Tensor, G: Tensor, W: Tensor) -> tuple[Tensor, float]:
    """Return the C that minimises tr((W - B C)^T G (W - B C)): (B^T G B)^-1 B^T G W (Basis Sharing, section 3.4).

    Args:
        basis: B, shape ``[d_in, k]``, fp64.
        G: Second moment of the inputs, shape ``[d_in, d_in]``, fp64.
        W: Weights, shape ``[d_in, n]``, fp64.

    Returns:
        C of shape ``[k, n]``, and the relative ridge that had to be added to B^T G B (0: none).

    Raises:
        NumericalError: B^T G B is indefinite beyond repair.
    """
    GB = G @ basis
    factor, ridge = positive_cholesky(basis.T @ GB)
    return cholesky_solve(GB.T @ W, factor), ridge
