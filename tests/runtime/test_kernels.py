"""Products with matrices in few bits: what they give, and that the layouts they read come back as they were."""

import copy
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

from basis_sharing.runtime import kernels_basis_sharing as kernels
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.runtime.kernels_basis_sharing import FourBits, kernel_for
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear, pack

GRIDS = [Grid(8, 576, symmetric=True), Grid(4, 64), Grid(4, 32, symmetric=True)]
CPU = torch.device("cpu")
D_IN, D_OUT = 576, 192

pytestmark = pytest.mark.skipif(
    any(kernel_for(grid, D_IN, D_OUT, CPU, torch.float32) is None for grid in GRIDS),
    reason="PyTorch has no products with few bits on this processor",
)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget which products this machine has."""
    yield
    kernels._FOUND.clear()


def layer(grid: Grid, dtype: torch.dtype = torch.float32) -> RoundedLinear:
    """Return a layer whose scales are numbers of bf16."""
    made = RoundedLinear(D_IN, D_OUT, grid, bias=True, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**grid.bits, (D_OUT, D_IN), generator=generator).to(torch.uint8)
    with torch.no_grad():
        made.packed.copy_(pack(codes, grid))
        made.scales.copy_((torch.rand(made.scales.shape, generator=generator) + 0.5).bfloat16())
        assert made.bias is not None
        made.bias.copy_(torch.randn(D_OUT, generator=generator))
        if made.zero_points is not None:
            zero = torch.randint(0, 16, (made.scales.shape[1], D_OUT), generator=generator).to(torch.uint8)
            made.zero_points.copy_(pack(zero, grid).T)
    return made


@pytest.mark.parametrize("rows", [1, 7, 100], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_product_is_that_with_the_matrix(grid: Grid, dtype: torch.dtype, rows: int) -> None:
    made = layer(grid, dtype)
    x = torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double() @ made.matrix(torch.float64).detach().T + made.bias.detach().double()  # type: ignore[union-attr]
    with torch.no_grad():
        found = made(x[None])
    assert made.is_arranged
    assert (found.dtype, found.shape) == (dtype, (1, rows, D_OUT))
    assert (found[0].double() - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_saved_is_packed(grid: Grid) -> None:
    made = layer(grid)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    size = made.packed.nbytes
    with torch.inference_mode():
        made(torch.randn(1, D_IN))
    assert made.is_arranged
    assert made.packed.nbytes == size
    matrix = made.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert not made.is_arranged
    assert torch.equal(made.weight, matrix)
    with torch.no_grad():
        made(torch.randn(1, D_IN))
    assert torch.equal(copy.deepcopy(made).to(torch.float64).weight, matrix.double())
    made.load_state_dict(before)
    assert torch.equal(made.weight, matrix)


def test_scales_that_were_trained_are_used() -> None:
    made, x = layer(Grid(4, 64)), torch.randn(1, D_IN)
    with torch.no_grad():
        before = made(x) - made.bias
    made(x).square().sum().backward()
    assert made.scales.grad is not None
    with torch.no_grad():
        made.scales.mul_(2)
        torch.testing.assert_close(made(x) - made.bias, 2 * before, rtol=0.02, atol=0.02 * float(before.abs().max()))


def test_layers_with_one_basis_share_its_layout() -> None:
    first, second = layer(Grid(4, 64)), layer(Grid(4, 64))
    second.packed = first.packed
    x = torch.randn(2, D_IN)
    with torch.no_grad():
        torch.testing.assert_close(first(x), second(x))
        first.state_dict()
        assert not second.is_arranged
        torch.testing.assert_close(first(x), second(x))


def test_threads_that_use_a_layer_first_at_once() -> None:
    made, x = layer(Grid(4, 64)), torch.randn(100, D_IN)
    exact, found = x @ made.weight.detach().T, []

    def use() -> None:
        with torch.no_grad():
            found.append(made(x) - made.bias)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        assert (one - exact).abs().max() < 0.01 * exact.abs().max()


def test_an_arranged_layer_compiles_as_one_graph() -> None:
    made, x = layer(Grid(4, 64)), torch.randn(4, D_IN)
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), made(x), rtol=0.02, atol=1.0)  # unpacked
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(x), made(x))


def test_numbers_dtypes_and_sizes_without_a_product() -> None:
    assert kernel_for(Grid(3, 64), D_IN, D_OUT, CPU, torch.float32) is None
    assert kernel_for(Grid(8, 64, symmetric=True), D_IN, D_OUT, CPU, torch.float32) is None
    assert kernel_for(Grid(4, 64), D_IN, D_OUT, CPU, torch.float64) is None
    assert kernel_for(Grid(4, 64), D_IN, 100, CPU, torch.float32) is None
    assert kernel_for(Grid(4, 64), 64, 64, CPU, torch.float32) is None


def test_a_machine_without_the_product_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._FOUND.clear()
    monkeypatch.setattr(FourBits, "beside", lambda self, scales, zeros: torch.zeros(len(scales.T), len(scales), 2))
    made, x = layer(Grid(4, 64)), torch.randn(1, D_IN)
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        exact = x @ made.weight.T + made.bias
        torch.testing.assert_close(made(x), exact)
        torch.testing.assert_close(made(x), exact)
    assert [str(one.message) for one in said if "4-bit" in str(one.message)] == [
        "PyTorch has no product with 4-bit weights for this cpu: they are unpacked at every use, which is slower."
    ]
    assert not made.is_arranged


def test_a_layout_with_other_places_in_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As processors with wider instructions have it: many rows and the way back do not depend on the order."""
    monkeypatch.setattr(kernels, "_PART", 64 * D_IN)
    low, high = torch.arange(0, 64, 2), torch.arange(1, 64, 2)
    kernel, generator = FourBits(64, 64, low, high), torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (D_OUT, D_IN), generator=generator).to(torch.uint8)
    blocks = codes.view(-1, 64, D_IN)
    arranged = (blocks[:, low] | blocks[:, high] << 4).transpose(1, 2).reshape(D_OUT, D_IN // 2)
    assert torch.equal(kernel.codes(arranged), codes)
    scales = (torch.rand(D_OUT, D_IN // 64, generator=generator) + 0.5).bfloat16().float()
    beside = kernel.beside(scales, torch.full_like(scales, 8))
    x = torch.randn(100, D_IN, generator=generator)
    exact = x @ ((codes.float() - 8) * scales.repeat_interleave(64, 1)).T
    torch.testing.assert_close(kernel.product(x, arranged, beside), exact, rtol=1e-3, atol=1e-2)
