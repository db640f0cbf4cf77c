"""One order of the inputs for several bases."""

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


def one_by_one(bases: list[Tensor]) -> list[int]:
    """The definition: the next input maximizes the product of the volumes over all bases of higher rank."""
    chosen: list[int] = []
    while len(chosen) < max(basis.shape[1] for basis in bases):
        active = [basis for basis in bases if basis.shape[1] > len(chosen)]

        def volume(row: int, active: list[Tensor] = active) -> float:
            rows = [basis[[*chosen, row]] for basis in active]
            return sum(torch.linalg.slogdet(R @ R.T)[1].item() for R in rows)

        chosen.append(max((row for row in range(len(bases[0])) if row not in chosen), key=volume))
    return chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 23), min_size=1, max_size=3))
def test_the_order_is_that_of_the_definition(seed: int, ranks: list[int]) -> None:
    bases = [orthonormal(24, rank, seed + i) for i, rank in enumerate(sorted(ranks))]
    assert nested_order(bases).tolist() == one_by_one(bases)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_blocks_do_not_change_the_choices(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = [orthonormal(96, rank, rank) for rank in (20, 45, 70)]
    expected = nested_order(bases)
    monkeypatch.setattr(nesting, "_BLOCK", size)
    assert torch.equal(nested_order(bases), expected)


@pytest.mark.parametrize("ranks", [(48, 48), (16, 64), (8, 40, 90)])
def test_the_first_inputs_are_good_pivots_for_every_basis(ranks: tuple[int, ...]) -> None:
    bases = [orthonormal(128, rank, rank) for rank in ranks]
    order = nested_order(bases)
    assert sorted(set(order.tolist())) == sorted(order.tolist())
    for basis in bases:
        transformed = torch.linalg.solve(basis[order[: basis.shape[1]]], basis, left=False)
        assert transformed.abs().max() < 4
