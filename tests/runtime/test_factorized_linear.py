"""The module of a compressed projection, on short and on long inputs."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from basis_sharing.linalg.pivoting import assemble
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear, full_basis, share_readings


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


class Attention(nn.Module):
    """Three projections of one input: two with a joint basis, one with a basis of its own, in one order of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            FactorizedLinear(16, rank, 5, bias=False, pivoted=True, dtype=torch.float64) for rank in (6, 6, 9)
        )
        self.k.basis.weight = self.q.basis.weight
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).int()
        for module, group in ((self.q, "q"), (self.k, "q"), (self.v, "v")):
            module.order, module.order_name = order, "common"
            module.group, module.stored_in = group, f"basis of {group}"
        share_readings(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        result: torch.Tensor = self.q(x) * self.k(x) + self.v(x)
        return result


def alone(module: FactorizedLinear, x: torch.Tensor) -> torch.Tensor:
    basis, C = full_basis(module), module.coeff.weight.T
    return x @ basis @ C


def counted(module: nn.Module, calls: list[nn.Module]) -> None:
    module.register_forward_hook(lambda called, args, output: calls.append(called))


def test_what_projections_have_in_common_is_computed_once_and_not_kept() -> None:
    attention, calls = Attention(), list[nn.Module]()
    for module in (attention.q, attention.k, attention.v):
        counted(module.basis, calls)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    for _ in range(2):
        calls.clear()
        found = attention(x)
        seen = torch.relu(x)
        expected = alone(attention.q, seen) * alone(attention.k, seen) + alone(attention.v, seen)
        torch.testing.assert_close(found, expected)
        assert calls == [attention.q.basis, attention.v.basis]
        assert attention.q.reading._kept is None


def test_another_input_or_a_changed_one_is_computed_anew() -> None:
    attention = Attention()
    x = torch.randn(4, 16, dtype=torch.float64)
    attention.q(x)
    torch.testing.assert_close(attention.k(x.clone()), alone(attention.k, x))
    attention.q(x)
    x.mul_(2)
    torch.testing.assert_close(attention.k(x), alone(attention.k, x))


def test_a_result_without_a_gradient_is_not_used_where_one_is_needed() -> None:
    attention = Attention()
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        attention.q(x)
    (gradient,) = torch.autograd.grad(attention.k(x).sum(), x)
    expected = (full_basis(attention.k) @ attention.k.coeff.weight.T).sum(1).expand_as(x)
    torch.testing.assert_close(gradient, expected)


def test_threads_do_not_mix_their_inputs() -> None:
    attention = Attention()
    inputs = [torch.randn(2, 16, dtype=torch.float64) for _ in range(64)]
    expected = [attention(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(attention, inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_copy_shares_as_the_original_does() -> None:
    attention = copy.deepcopy(Attention())
    assert attention.q.reading is attention.k.reading
    assert attention.q.basis.weight is attention.k.basis.weight


def test_compiled_it_is_one_graph_with_the_same_result_and_gradient() -> None:
    attention = Attention()
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), attention(x))
    ours, theirs = (torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, attention))
    torch.testing.assert_close(ours, theirs)
    assert attention.q.reading._kept is None


def test_bases_side_by_side_are_one_product() -> None:
    parent, calls = nn.Module(), list[nn.Module]()
    parent.gate, parent.up = (
        FactorizedLinear(8, 3, 4, bias=True, pivoted=True, rows=(first, 6), dtype=torch.float64) for first in (0, 3)
    )
    parent.up.basis.weight = parent.gate.basis.weight
    for module, group in ((parent.gate, "gate"), (parent.up, "up")):
        module.group, module.stored_in = group, "basis of gate"
        counted(module.basis, calls)
    share_readings(parent)
    x = torch.randn(5, 8, dtype=torch.float64)
    for module in (parent.gate, parent.up):
        torch.testing.assert_close(module(x), alone(module, x) + module.coeff.bias)
    assert len(calls) == 1
    assert not torch.equal(full_basis(parent.gate), full_basis(parent.up))
    assert parent.gate.sharers == parent.up.sharers == 2
