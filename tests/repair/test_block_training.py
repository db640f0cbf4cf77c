"""The error of states, in proportion to their size."""

import torch

from basis_sharing.repair.block_training import relative_error


def test_no_token_counts_for_more_because_it_is_large() -> None:
    targets = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    states = targets + 0.1 * torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([1.0, 10.0, 100.0, 1.0, 1e4, 1e-2])[:, None]
    torch.testing.assert_close(relative_error(states * scale, targets * scale), relative_error(states, targets))


def test_zero_for_equal_states_and_finite_for_zero_ones() -> None:
    zeros = torch.zeros(1, 2, 4)
    assert relative_error(zeros, zeros) == 0
