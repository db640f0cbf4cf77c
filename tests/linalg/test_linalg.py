"""Property tests of the mathematics, against textbook definitions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.group_losses import GroupLosses, losses
from basis_sharing.linalg.least_squares import refit_coefficients
from basis_sharing.linalg.truncation import (
    Truncation,
    Weighted,
    loss_of,
    losses_under,
    truncate,
)
from basis_sharing.linalg.whitening import (
    CholeskyWhitening,
    IdentityWhitening,
    Whitening,
    cholesky_whitening,
    diagonal_whitening,
)

shapes = st.tuples(st.integers(2, 24), st.integers(1, 48))
seeds = st.integers(0, 2**31 - 1)
# Widths of the members of a group: together narrower or wider than the input.
groups = st.tuples(st.integers(2, 16), st.lists(st.integers(1, 12), min_size=1, max_size=3))


def moment(size: int, generator: torch.Generator) -> Tensor:
    X = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    return X.T @ X / len(X) + 0.05 * torch.eye(size, dtype=torch.float64)


def problem(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    d_in, n = shape
    X = torch.randn(4 * d_in, d_in, generator=generator, dtype=torch.float64)
    X = X @ torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    return torch.randn(d_in, n, generator=generator, dtype=torch.float64), X.T @ X


def whitenings(G: Tensor) -> list[Whitening]:
    return [IdentityWhitening(), diagonal_whitening(G.diagonal().sqrt()), cholesky_whitening(G)]


def group_of(
    shape: tuple[int, list[int]], seed: int, *, one_input: bool, weighted: bool = True, scale: float = 1.0
) -> list[Weighted]:
    """Return a group of matrices with output weightings, and with one or several weightings of the input."""
    d_in, widths = shape
    generator = torch.Generator().manual_seed(seed)
    S = cholesky_whitening(moment(d_in, generator))
    return [
        Weighted(
            torch.randn(d_in, width, generator=generator, dtype=torch.float64),
            S if one_input else cholesky_whitening((i + 1) * moment(d_in, generator)),
            scale * moment(width, generator) if weighted else None,
        )
        for i, width in enumerate(widths)
    ]


def most_vectors(members: list[Weighted]) -> int:
    """Return the number of basis vectors at which nothing is lost."""
    return min(members[0].shape[0], sum(member.shape[1] for member in members))


def wide(members: list[Weighted]) -> Tensor:
    """Return S [W_1 R_1 ...]."""
    parts = []
    for member in members:
        R = torch.eye(member.W.shape[1]).double() if member.H is None else torch.linalg.cholesky(member.H)
        parts.append(member.S.apply(member.W @ R))
    return torch.cat(parts, dim=1)


def tails(sigma: Tensor) -> Tensor:
    return torch.tensor([sigma[k:].square().sum().item() for k in range(len(sigma) + 1)], dtype=torch.float64)


def real_losses(members: list[Weighted], found: Truncation) -> Tensor:
    """Return what the factors of every rank lose, by the definition of the loss."""
    lost = []
    for rank in range(len(found.losses)):
        coefficients = found.coefficients(rank)
        lost.append(
            sum(
                loss_of(member, member.W - found.basis[:, :rank] @ C)
                for member, C in zip(members, coefficients, strict=True)
            )
        )
    return torch.tensor(lost, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, share=st.floats(0.01, 1))
def test_truncation_is_the_truncated_svd_of_the_whitened_matrix(
    shape: tuple[int, int], seed: int, share: float
) -> None:
    W, G = problem(shape, seed)
    for S in whitenings(G):
        U, sigma, Vt = torch.linalg.svd(S.apply(W), full_matrices=False)
        k = max(1, int(share * len(sigma)))
        expected = S.solve((U[:, :k] * sigma[:k]) @ Vt[:k])
        found = truncate([Weighted(W, S)])
        (C,) = found.coefficients(k)
        assert found.basis.shape == (shape[0], len(sigma))
        assert C.shape == (k, shape[1])
        assert torch.allclose(found.basis[:, :k] @ C, expected, atol=1e-6 * W.abs().max())
        assert found.total == pytest.approx((sigma**2).sum().item(), rel=1e-9)
        assert torch.allclose(found.losses, tails(sigma), atol=1e-9 * found.total)


@settings(deadline=None, max_examples=60)
@given(shape=groups, seed=seeds, weighted=st.booleans(), scale=st.sampled_from([1e-12, 1.0, 1e6]))
def test_with_one_input_the_losses_are_the_tails_of_the_weighted_wide_matrix(
    shape: tuple[int, list[int]], seed: int, weighted: bool, scale: float
) -> None:
    members = group_of(shape, seed, one_input=True, weighted=weighted, scale=scale)
    found = truncate(members)
    expected = tails(torch.linalg.svdvals(wide(members)))
    assert len(found.losses) == most_vectors(members) + 1 == found.basis.shape[1] + 1
    assert torch.allclose(found.losses, expected, rtol=1e-8, atol=1e-10 * found.total)


@settings(deadline=None, max_examples=60)
@given(shape=groups, seed=seeds, one_input=st.booleans(), weighted=st.booleans())
def test_the_losses_are_those_of_the_factors_at_every_rank(
    shape: tuple[int, list[int]], seed: int, one_input: bool, weighted: bool
) -> None:
    members = group_of(shape, seed, one_input=one_input, weighted=weighted)
    found = truncate(members)
    assert torch.allclose(found.losses, real_losses(members, found), rtol=1e-6, atol=1e-8 * found.total)
    assert found.total == pytest.approx(sum(loss_of(member, member.W) for member in members), rel=1e-9)
    assert (found.losses.diff() <= 1e-12 * found.total).all()
    assert found.losses[-1] == 0
    for member, C in zip(members, found.coefficients(len(found.losses) - 1), strict=True):
        assert torch.allclose(found.basis @ C, member.W, atol=1e-6 * member.W.abs().max())


@settings(deadline=None, max_examples=40)
@given(shape=groups, seed=seeds, one_input=st.booleans(), share=st.floats(0.01, 1))
def test_the_coefficients_are_the_best_for_their_basis(
    shape: tuple[int, list[int]], seed: int, one_input: bool, share: float
) -> None:
    members = group_of(shape, seed, one_input=one_input)
    found = truncate(members)
    rank = max(1, int(share * most_vectors(members)))
    B = found.basis[:, :rank]
    for member, C in zip(members, found.coefficients(rank), strict=True):
        best = torch.linalg.lstsq(member.S.apply(B), member.S.apply(member.W)).solution
        scale = loss_of(member, member.W)
        assert loss_of(member, member.W - B @ C) == pytest.approx(
            loss_of(member, member.W - B @ best), abs=1e-8 * scale
        )
        assert member.S.apply(B @ (C - best)).norm() <= 1e-6 * member.S.apply(member.W).norm()


@settings(deadline=None, max_examples=30)
@given(shape=groups, seed=seeds)
def test_no_other_basis_of_one_input_loses_less(shape: tuple[int, list[int]], seed: int) -> None:
    members = group_of(shape, seed, one_input=True)
    found = truncate(members)
    rank = max(1, most_vectors(members) // 2)
    plain = torch.linalg.svd(torch.cat([member.W for member in members], dim=1), full_matrices=False).U[:, :rank]
    other = 0.0
    for member in members:
        C = torch.linalg.lstsq(member.S.apply(plain), member.S.apply(member.W)).solution
        other += loss_of(member, member.W - plain @ C)
    assert found.losses[rank] <= other + 1e-9 * found.total


@settings(deadline=None, max_examples=60)
@given(shape=groups, seed=seeds, one_input=st.booleans(), weighted=st.booleans())
def test_losses_without_factors_agree(shape: tuple[int, list[int]], seed: int, one_input: bool, weighted: bool) -> None:
    members = group_of(shape, seed, one_input=one_input, weighted=weighted)
    expected = truncate(members).losses
    assert torch.allclose(losses(members), expected, rtol=1e-6, atol=1e-10 * expected[0])


@settings(deadline=None, max_examples=40)
@given(shape=groups, seed=seeds, one_input=st.booleans(), most_bytes=st.sampled_from([0, 4000, 2**20]))
def test_losses_do_not_depend_on_the_groups_before(
    shape: tuple[int, list[int]], seed: int, one_input: bool, most_bytes: int
) -> None:
    members = group_of(shape, seed, one_input=one_input)
    kept, rough = GroupLosses(most_bytes), GroupLosses(most_bytes, products=torch.float32)
    for start in range(len(members)):
        for stop in range(start + 1, len(members) + 1):
            expected = truncate(members[start:stop]).losses
            assert torch.allclose(kept.measured(members[start:stop]), expected, rtol=1e-6, atol=1e-9 * expected[0])
            assert torch.allclose(rough.measured(members[start:stop]), expected, rtol=1e-3, atol=1e-5 * expected[0])


@settings(deadline=None, max_examples=40)
@given(shape=groups, seed=seeds, one_input=st.booleans(), weighted=st.booleans())
def test_given_factors_under_another_weighting(
    shape: tuple[int, list[int]], seed: int, one_input: bool, weighted: bool
) -> None:
    members = group_of(shape, seed, one_input=one_input, weighted=weighted)
    scaled = diagonal_whitening(torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) + 0.1)
    for S in (scaled, IdentityWhitening()):
        found = truncate([Weighted(member.W, S) for member in members])
        total = sum(loss_of(member, member.W) for member in members)
        assert torch.allclose(losses_under(members, found), real_losses(members, found), rtol=1e-6, atol=1e-8 * total)


@settings(deadline=None, max_examples=40)
@given(shape=groups, seed=seeds)
def test_equal_weightings_need_not_be_one_object(shape: tuple[int, list[int]], seed: int) -> None:
    members = group_of(shape, seed, one_input=True)
    one = members[0].S
    assert isinstance(one, CholeskyWhitening)
    copies = [Weighted(m.W, CholeskyWhitening(one.factor.clone(), one.ridge), m.H) for m in members]
    same, distinct = truncate(members), truncate(copies)
    assert torch.allclose(same.losses, distinct.losses, rtol=1e-6, atol=1e-8 * same.total)
    assert torch.allclose(same.losses, real_losses(copies, distinct), rtol=1e-6, atol=1e-8 * same.total)


@settings(deadline=None, max_examples=40)
@given(shape=groups, seed=seeds, one_input=st.booleans(), rank=st.integers(0, 3))
def test_matrices_of_low_rank_are_stored_without_loss_in_few_vectors(
    shape: tuple[int, list[int]], seed: int, one_input: bool, rank: int
) -> None:
    """Directions without energy divide nothing by zero, in rank-deficient and in vanishing groups."""
    d_in, _ = shape
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(d_in, rank, generator=generator, dtype=torch.float64)
    members = [
        Weighted(base @ torch.randn(rank, m.W.shape[1], generator=generator, dtype=torch.float64), m.S, m.H)
        for m in group_of(shape, seed, one_input=one_input)
    ]
    found = truncate(members)
    assert torch.isfinite(found.basis).all()
    for k in range(min(rank, most_vectors(members)), len(found.losses)):
        assert found.losses[k] <= 1e-9 * found.total
        for member, C in zip(members, found.coefficients(k), strict=True):
            assert torch.allclose(found.basis[:, :k] @ C, member.W, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds)
def test_full_rank_is_lossless_and_loss_falls_as_rank_grows(shape: tuple[int, int], seed: int) -> None:
    W, G = problem(shape, seed)
    for S in whitenings(G):
        found = truncate([Weighted(W, S)])
        assert all(after <= before + 1e-12 * found.total for before, after in pairwise(found.losses.tolist()))
        (C,) = found.coefficients(min(shape))
        assert torch.allclose(found.basis @ C, W, atol=1e-6 * W.abs().max())


@settings(deadline=None, max_examples=30)
@given(shape=shapes, seed=seeds)
def test_refit_is_the_least_squares_solution(shape: tuple[int, int], seed: int) -> None:
    W, G = problem(shape, seed)
    B = truncate([Weighted(W, IdentityWhitening())]).basis[:, : max(1, shape[0] // 2)]
    B = B[:, B.norm(dim=0) > 1e-9]
    C, ridge = refit_coefficients(B, G, W)
    S = cholesky_whitening(G)
    expected = torch.linalg.lstsq(S.apply(B), S.apply(W)).solution
    assert ridge == 0
    assert torch.allclose(S.apply(B @ C), S.apply(B @ expected), atol=1e-6 * S.apply(W).abs().max())


def test_refit_on_the_moments_of_the_truncation_changes_nothing() -> None:
    W, G = problem((12, 20), 0)
    found = truncate([Weighted(W, cholesky_whitening(G))])
    C, _ = refit_coefficients(found.basis[:, :5], G, W)
    assert torch.allclose(C, next(found.coefficients(5)), atol=1e-8)


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
    damaged = [Weighted(torch.full((3, 4), float("inf"), dtype=torch.float64), IdentityWhitening())]
    for function in (truncate, losses):
        with pytest.raises(NumericalError, match="weight matrix"):
            function(damaged)


@pytest.mark.parametrize("one_input", [True, False])
@pytest.mark.parametrize("widths", [[3], [3, 4], [12], [9, 9]])
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-12, 1e12])
def test_the_scale_of_the_weighting_does_not_reach_the_factors(
    one_input: bool, widths: list[int], scale: float
) -> None:
    members = group_of((8, widths), 5, one_input=one_input, scale=scale)
    found = truncate(members)
    rank = most_vectors(members)
    for factor in (found.basis, *found.coefficients(rank)):
        assert 1e-3 < factor.abs().max() < 1e3
    for member, C in zip(members, found.coefficients(rank), strict=True):
        assert torch.allclose(found.basis @ C, member.W, atol=1e-6)
    if 0 < scale < 1e-200 or scale == 0:
        assert found.total <= 1e-290
    else:
        assert found.total == pytest.approx(sum(loss_of(member, member.W) for member in members), rel=1e-9)


def test_features_that_never_fire_do_not_divide_by_zero() -> None:
    S = diagonal_whitening(torch.tensor([0.0, 1.0, 2.0]))
    assert torch.isfinite(S.solve(torch.eye(3, dtype=torch.float64))).all()
    assert torch.isfinite(diagonal_whitening(torch.zeros(3)).scale).all()
