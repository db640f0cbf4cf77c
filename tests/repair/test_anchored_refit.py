"""Coefficients in closed form from both flows."""

import torch

from basis_sharing.repair.anchored_refit import anchored_coefficients, best_choice, flow_moments

generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_it_is_the_weighted_least_squares_solution() -> None:
    x, W, B = normal(200, 12), normal(12, 7), normal(12, 5)
    drifted = x + 0.3 * normal(200, 12)
    C = anchored_coefficients(B, flow_moments([(drifted, x)], 12), W, torch.zeros(5, 7, dtype=torch.float64), 1.0)
    weights = x.square().sum(1, keepdim=True).rsqrt()
    expected = torch.linalg.lstsq(weights * (drifted @ B), weights * (x @ W)).solution
    torch.testing.assert_close(C, expected, rtol=2e-2, atol=2e-2)


def test_without_drift_every_anchor_gives_the_same() -> None:
    x, W, B, C = normal(200, 12), normal(12, 7), normal(12, 5), normal(5, 7)
    moments = flow_moments([(x, x)], 12)
    torch.testing.assert_close(
        anchored_coefficients(B, moments, W, C, 0.0), anchored_coefficients(B, moments, W, C, 1.0), rtol=1e-4, atol=1e-4
    )


def test_the_best_choice_stays_in_place_and_the_planned_one_where_none_is_better() -> None:
    for optimum, expected in ((0.75, 0.75), (-3.0, 0.0)):
        place = [torch.zeros(1)]

        def install(coefficients: list[torch.Tensor], place: list[torch.Tensor] = place) -> None:
            place[:] = coefficients

        found = best_choice(
            [torch.zeros(1)],
            lambda anchor: [torch.tensor([anchor * 1.5])],
            install,  # type: ignore[arg-type]
            lambda place=place, optimum=optimum: abs(place[0].item() - optimum),  # type: ignore[misc]
        )
        assert place[0].item() == expected
        assert found == abs(expected - optimum)
