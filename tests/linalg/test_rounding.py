"""Rounding: never worse than to the nearest, exact where nothing is lost, and GPTQ where it is asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basis_sharing.linalg.rounding import feedback_of, loss_of_error, nearest, scales_of, with_feedback
from basis_sharing.runtime.format_basis_sharing import Grid

GRIDS = st.builds(Grid, bits=st.integers(2, 8), group=st.sampled_from([4, 16, 64]), symmetric=st.booleans())


def problem(seed: int, d_out: int, d_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator)
    X = torch.randn(3 * d_in, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    return W, (X.T @ X / len(X)).double()


@given(GRIDS, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_no_number_is_further_from_the_matrix_than_half_a_step(grid: Grid, seed: int) -> None:
    W, _ = problem(seed, 6, 37)
    scale, zero = scales_of(W, grid, search="range")
    rounded = nearest(W, grid, scale, zero)
    assert int(rounded.codes.max()) < 2**grid.bits
    step = scale.repeat_interleave(grid.group, 1)[:, :37]
    slack = 1.0 if grid.symmetric else 0.5  # the range of a symmetric grid ends half a step earlier on one side
    assert ((rounded.matrix() - W).abs() <= (0.5 + slack) * step + 1e-6).all()


@given(GRIDS, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_feedback_loses_less_than_rounding_to_the_nearest(grid: Grid, seed: int) -> None:
    W, G = problem(seed, 12, 64)
    plain = nearest(W, grid, *scales_of(W, grid, search="range"))
    (rounded,) = with_feedback(W, [grid], G)
    assert loss_of_error(rounded.matrix() - W, G, None) < loss_of_error(plain.matrix() - W, G, None)


def test_a_matrix_on_its_grid_stays_what_it_is() -> None:
    grid = Grid(4, 16)
    codes = torch.randint(0, 16, (5, 32), generator=torch.Generator().manual_seed(0))
    codes[:, ::16], codes[:, 1::16] = 0, 15  # the whole range in every group
    W = (codes - 7).float() * 0.25
    _, G = problem(0, 5, 32)
    for rounded in (nearest(W, grid, *scales_of(W, grid, search="range")), *with_feedback(W, [grid], G)):
        torch.testing.assert_close(rounded.matrix(), W)


def test_several_grids_are_rounded_at_once_as_one_by_one() -> None:
    W, G = problem(3, 7, 40)
    grids = [Grid(8, 100, symmetric=True), Grid(8, 16), Grid(3, 16, symmetric=True), Grid(2, 16)]
    for grid, found in zip(grids, with_feedback(W, grids, G), strict=True):
        (alone,) = with_feedback(W, [grid], G)
        assert torch.equal(found.codes, alone.codes)
        assert found.grid == grid


def test_gptq_is_that_of_its_paper() -> None:
    """Algorithm 1 of arXiv 2210.17323, written down naively: one input at a time, without blocks."""
    W, G = problem(5, 4, 24)
    grid = Grid(4, 8)
    damped = G + 0.01 * G.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, expected = W.double().clone(), torch.zeros(4, 24, dtype=torch.float64)
    for j in range(24):
        if j % 8 == 0:
            low = left[:, j : j + 8].amin(1).clamp_max(0)
            high = left[:, j : j + 8].amax(1).clamp_min(0)
            scale = (high - low) / 15
            zero = (-low / scale).round()
        code = (left[:, j] / scale + zero).round().clamp(0, 15)
        expected[:, j] = (code - zero) * scale
        left[:, j:] -= ((left[:, j] - expected[:, j]) / U[j, j])[:, None] * U[j, j:]
    (found,) = with_feedback(W.double(), [grid], G, search="range", damping=0.01)
    torch.testing.assert_close(found.matrix(), expected)


def test_feedback_factor() -> None:
    _, G = problem(1, 1, 16)
    U = feedback_of(G)
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(G))
    assert torch.equal(U, U.triu())


@pytest.mark.parametrize("symmetric", [True, False])
def test_searched_scales_lose_no_more(symmetric: bool) -> None:
    W, G = problem(2, 8, 32)
    grid = Grid(3, 16, symmetric)
    weights = G.diagonal().float()

    def error(search: str) -> float:
        rounded = nearest(W, grid, *scales_of(W, grid, weights, search))  # type: ignore[arg-type]
        return float(((rounded.matrix() - W).square() * weights).sum())

    assert error("error") < error("range")


def test_a_matrix_of_zeros() -> None:
    W = torch.zeros(3, 16)
    for symmetric in (True, False):
        rounded = nearest(W, grid := Grid(2, 8, symmetric), *scales_of(W, grid))
        assert torch.equal(rounded.matrix(), W)
