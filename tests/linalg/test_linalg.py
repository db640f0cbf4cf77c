"""Property tests of the mathematics, against textbook definitions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.least_squares import refit_coefficients
from basis_sharing.linalg.truncation import truncate
from basis_sharing.linalg.whitening import (
    IdentityWhitening,
    Whitening,
    cholesky_whitening,
    diagonal_whitening,
)

shapes = st.tuples(st.integers(2, 24), st.integers(1, 48))
seeds = st.integers(0, 2**31 - 1)


def problem(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    d_in, n = shape
    X = torch.randn(4 * d_in, d_in, generator=generator, dtype=torch.float64)
    X = X @ torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    return torch.randn(d_in, n, generator=generator, dtype=torch.float64), X.T @ X


def whitenings(G: torch.Tensor) -> list[Whitening]:
    return [IdentityWhitening(), diagonal_whitening(G.diagonal().sqrt()), cholesky_whitening(G)]


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, share=st.floats(0.01, 1))
def test_truncation_is_the_truncated_svd_of_the_whitened_matrix(
    shape: tuple[int, int], seed: int, share: float
) -> None:
    W, G = problem(shape, seed)
    rank = max(1, int(share * shape[0]))
    for S in whitenings(G):
        U, sigma, Vt = torch.linalg.svd(S.apply(W), full_matrices=False)
        k = min(rank, len(sigma))
        expected = S.solve((U[:, :k] * sigma[:k]) @ Vt[:k])
        found = truncate(W, S, rank)
        assert found.basis.shape == (shape[0], rank)
        assert found.coefficients.shape == (rank, shape[1])
        scale = W.abs().max()
        assert torch.allclose(found.basis @ found.coefficients, expected, atol=1e-6 * scale)
        assert found.total == pytest.approx((sigma**2).sum().item(), rel=1e-9)
        error = S.apply(W - found.basis @ found.coefficients).square().sum().item()
        assert found.lost == pytest.approx(error, abs=1e-9 * found.total)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds)
def test_full_rank_is_lossless_and_loss_falls_as_rank_grows(shape: tuple[int, int], seed: int) -> None:
    W, G = problem(shape, seed)
    for S in whitenings(G):
        losses = [truncate(W, S, rank).lost for rank in range(1, shape[0] + 1)]
        assert all(after <= before + 1e-12 * losses[0] for before, after in pairwise(losses))
        full = truncate(W, S, shape[0])
        assert torch.allclose(full.basis @ full.coefficients, W, atol=1e-6 * W.abs().max())


@settings(deadline=None, max_examples=30)
@given(shape=shapes, seed=seeds)
def test_refit_is_the_least_squares_solution(shape: tuple[int, int], seed: int) -> None:
    W, G = problem(shape, seed)
    B = truncate(W, IdentityWhitening(), max(1, shape[0] // 2)).basis
    B = B[:, B.norm(dim=0) > 1e-9]
    C, ridge = refit_coefficients(B, G, W)
    S = cholesky_whitening(G)
    expected = torch.linalg.lstsq(S.apply(B), S.apply(W)).solution
    assert ridge == 0
    assert torch.allclose(S.apply(B @ C), S.apply(B @ expected), atol=1e-6 * S.apply(W).abs().max())


def test_refit_on_the_moments_of_the_truncation_changes_nothing() -> None:
    W, G = problem((12, 20), 0)
    found = truncate(W, cholesky_whitening(G), 5)
    C, _ = refit_coefficients(found.basis, G, W)
    assert torch.allclose(C, found.coefficients, atol=1e-8)


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_a_singular_moment_gets_a_ridge_and_says_so(rank: int) -> None:
    X = torch.randn(rank, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = X.T @ X
    S = cholesky_whitening(G)
    assert 0 < S.ridge <= 1e-6
    assert torch.isfinite(S.solve(torch.eye(8, dtype=torch.float64))).all()


def test_a_positive_definite_moment_gets_no_ridge() -> None:
    _, G = problem((8, 1), 3)
    assert cholesky_whitening(G).ridge == 0


def test_what_is_no_second_moment_is_refused() -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        cholesky_whitening(torch.full((3, 3), float("nan")))
    with pytest.raises(NumericalError, match="beyond repair"):
        cholesky_whitening(-torch.eye(3))
    with pytest.raises(NumericalError, match="weight matrix"):
        truncate(torch.full((3, 4), float("inf"), dtype=torch.float64), IdentityWhitening(), 2)


def test_features_that_never_fire_do_not_divide_by_zero() -> None:
    S = diagonal_whitening(torch.tensor([0.0, 1.0, 2.0]))
    assert torch.isfinite(S.solve(torch.eye(3, dtype=torch.float64))).all()
    assert torch.isfinite(diagonal_whitening(torch.zeros(3)).scale).all()
