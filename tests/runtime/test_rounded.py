"""Packed matrices and the layer that multiplies by them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basis_sharing.runtime.format_basis_sharing import FormatError, Grid
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear, pack, unpack


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(bits: int, rows: int, count: int, seed: int) -> None:
    grid = Grid(bits, 16)
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, grid)
    assert (packed.dtype, packed.shape) == (torch.int32, (rows, grid.words(count)))
    assert torch.equal(unpack(packed, grid, count), codes)


def test_the_first_number_is_in_the_lowest_bits() -> None:
    """The layout of compressed-tensors: eight numbers of four bits in a word, the first in the lowest."""
    packed = pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]], dtype=torch.uint8), Grid(4, 16))
    assert [word & 0xFFFFFFFF for word in packed[0].tolist()] == [0x87654321, 0x9]
    (high, low) = pack(torch.tensor([[0b101, 0b010]], dtype=torch.uint8), Grid(3, 16))[0].tolist()
    assert (high, low) == (0b0110, 0b01)  # two planes: the upper two bits of each, then the lowest


def layer(grid: Grid, d_in: int, d_out: int) -> RoundedLinear:
    made = RoundedLinear(d_in, d_out, grid, bias=True)
    generator = torch.Generator().manual_seed(0)
    top = 2**grid.bits
    made.packed.copy_(pack(torch.randint(0, top, (d_out, d_in), generator=generator).to(torch.uint8), grid))
    with torch.no_grad():
        made.scales.copy_(torch.rand(made.scales.shape, generator=generator) + 0.1)
        assert made.bias is not None
        made.bias.copy_(torch.randn(d_out, generator=generator))
    if made.zero_points is not None:
        zero = torch.randint(0, top, (made.scales.shape[1], d_out), generator=generator).to(torch.uint8)
        made.zero_points.copy_(pack(zero, grid).T)
    return made


@pytest.mark.parametrize("grid", [Grid(4, 16), Grid(3, 16, symmetric=True), Grid(8, 64), Grid(5, 24)], ids=str)
def test_a_layer_multiplies_by_its_matrix(grid: Grid) -> None:
    made = layer(grid, 40, 12)
    codes = unpack(made.packed, grid, 40).float()
    zero = torch.full((12, grid.groups(40)), 2.0 ** (grid.bits - 1))
    if made.zero_points is not None:
        zero = unpack(made.zero_points.T, grid, 12).T.float()
    wide = [one.repeat_interleave(grid.group, 1)[:, :40] for one in (zero, made.scales)]
    expected = (codes - wide[0]) * wide[1]
    torch.testing.assert_close(made.weight, expected)
    x = torch.randn(2, 3, 40)
    torch.testing.assert_close(made(x), torch.nn.functional.linear(x, expected, made.bias))
    assert str(grid) in repr(made)


def test_scales_can_be_trained_and_codes_cannot() -> None:
    made = layer(Grid(4, 16), 32, 8)
    made(torch.randn(2, 32)).square().sum().backward()
    assert made.scales.grad is not None
    assert made.scales.grad.abs().sum() > 0
    assert not made.packed.requires_grad


def test_it_counts_the_numbers_it_holds() -> None:
    made = layer(Grid(3, 16), 40, 12)
    assert sum(made.counted().values()) == 40 * 12


def test_damaged_scales_are_refused() -> None:
    made = layer(Grid(4, 16), 32, 8)
    with torch.no_grad():
        made.scales[0, 0] = torch.nan
    with pytest.raises(FormatError, match=r"the scales of blocks\.0 contain NaN"):
        made.check("blocks.0")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    made, x = layer(Grid(3, 16), 32, 8), torch.randn(4, 32)
    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), made(x))
