"""One order of the inputs for several bases."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from basis_sharing.linalg import nesting
from basis_sharing.linalg.nesting import nested_order


def orthonormal(d_in: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, d_in, dtype=torch.float64)
    basis = scales[:, None] * torch.randn(d_in, rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(basis)[0]


def enlargements(bases: list[Tensor], chosen: list[int]) -> Tensor:
    """Return the logarithm of what each further input adds to the product of the squared volumes."""
    active = [basis for basis in bases if basis.shape[1] > len(chosen)]

    def volume(rows: list[int]) -> float:
        return sum(torch.linalg.slogdet(basis[rows] @ basis[rows].T)[1].item() for basis in active) if rows else 0.0

    rows = [row for row in range(len(bases[0])) if row not in chosen]
    return torch.tensor([volume([*chosen, row]) for row in rows]) - volume(chosen)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 23), min_size=1, max_size=3))
def test_every_choice_is_within_a_tenth_of_the_best(seed: int, ranks: list[int]) -> None:
    bases = [orthonormal(24, rank, seed + i) for i, rank in enumerate(sorted(ranks))]
    order = nested_order(bases).tolist()
    assert len(order) == max(ranks)
    for count, row in enumerate(order):
        possible = enlargements(bases, order[:count])
        free = [other for other in range(24) if other not in order[:count]]
        assert possible[free.index(row)] >= possible.max() - log(1.1) - 1e-6


def test_without_blocks_every_choice_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "_BLOCK", 1)
    bases = [orthonormal(24, rank, rank) for rank in (7, 15)]
    order = nested_order(bases).tolist()
    for count, row in enumerate(order):
        free = [other for other in range(24) if other not in order[:count]]
        assert free[int(enlargements(bases, order[:count]).argmax())] == row


@pytest.mark.parametrize("ranks", [(48, 48), (16, 64), (8, 40, 90)])
def test_the_first_inputs_are_good_pivots_for_every_basis(ranks: tuple[int, ...]) -> None:
    bases = [orthonormal(128, rank, rank) for rank in ranks]
    order = nested_order(bases)
    assert sorted(set(order.tolist())) == sorted(order.tolist())
    for basis in bases:
        transformed = torch.linalg.solve(basis[order[: basis.shape[1]]], basis, left=False)
        assert transformed.abs().max() < 4
