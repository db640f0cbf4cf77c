"""The pivoted form: the same product in fewer numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.pivoting import pivot


@settings(deadline=None, max_examples=60)
@given(d_in=st.integers(2, 40), share=st.floats(0, 1), seed=st.integers(0, 2**31 - 1), spread=st.floats(0, 5))
def test_the_product_is_the_same_and_entries_are_bounded(d_in: int, share: float, seed: int, spread: float) -> None:
    k = max(1, min(d_in - 1, int(share * d_in)))
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(d_in, k, generator=generator, dtype=torch.float64)
    B = B * torch.logspace(0, -spread, d_in, dtype=torch.float64)[:, None]
    B = B * torch.logspace(spread, 0, k, dtype=torch.float64)
    C = torch.randn(k, 7, generator=generator, dtype=torch.float64)
    found = pivot(B)
    assert torch.allclose(found.basis() @ (found.transform @ C), B @ C, atol=1e-8 * (B @ C).abs().max())
    assert torch.equal(found.basis()[found.pivots], torch.eye(k, dtype=torch.float64))
    assert torch.equal(torch.cat([found.pivots, found.rest]).sort().values, torch.arange(d_in))
    assert found.stored.abs().max() <= 1.06
    assert found.stored.numel() + found.transform.shape[0] * 7 == k * (d_in + 7) - k * k


def test_dependent_columns_are_refused() -> None:
    B = torch.ones(6, 2, dtype=torch.float64)
    with pytest.raises(NumericalError, match="linearly dependent"):
        pivot(B)
