"""The module of a compressed projection, on short and on long inputs."""

import pytest
import torch

from basis_sharing.linalg.pivoting import assemble
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear


@pytest.mark.parametrize("tokens", [1, 7, 9000], ids=["decoding", "short", "beyond the cache"])
@pytest.mark.parametrize("gradients", [True, False])
def test_pivots_are_taken_as_they_are(tokens: int, gradients: bool) -> None:
    torch.manual_seed(0)
    d_in, rank, d_out = 64, 24, 40
    chosen = torch.randperm(d_in)
    pivots, rest = chosen[:rank].sort().values, chosen[rank:].sort().values
    layer = FactorizedLinear(d_in, rank, d_out, bias=True, pivoted=True, dtype=torch.float64)
    layer.order = torch.cat([pivots, rest]).int()
    x = torch.randn(tokens, d_in, dtype=torch.float64, requires_grad=gradients)
    with torch.set_grad_enabled(gradients):
        y = layer(x)
    W = assemble(pivots, rest, layer.basis.weight.T) @ layer.coeff.weight.T
    expected = x @ W + layer.coeff.bias
    torch.testing.assert_close(y, expected)
    if gradients:
        (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        torch.testing.assert_close(found, W.sum(1).expand_as(x))


def test_gradients_are_those_of_the_product_twice_over() -> None:
    torch.manual_seed(0)
    layer = FactorizedLinear(7, 3, 4, bias=False, pivoted=True, dtype=torch.float64)
    layer.order = torch.tensor([1, 4, 6, 0, 2, 3, 5], dtype=torch.int32)
    x = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
