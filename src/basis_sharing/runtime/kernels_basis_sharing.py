# SPDX-License-Identifier: Apache-2.0
"""Products of PyTorch with matrices in few bits, and the layouts of codes that they read.

They read 8-bit codes with one scale per output, and 4-bit codes in groups of 32 to 256 inputs. Up to 48 rows, which is
decoding, features are rounded to bf16 and multiplied by the codes as they are. More rows are multiplied by parts of the
matrix, which are unpacked one after the other, in the dtype of the features. This file is copied into every checkpoint.
"""

import warnings
from abc import ABC, abstractmethod

import torch
from torch import nn

from .format_basis_sharing import Grid

_MOST_ROWS = 48  # beyond them, unpacking takes less time than it saves
_LEAST_NUMBERS = 2**16  # smaller matrices gain nothing
_PART = 2**22  # numbers that are unpacked at once
_DTYPES = (torch.float32, torch.bfloat16)


class Kernel(ABC):
    """A product with codes in a layout of its own; codes are uint8, shape ``[d_out, d_in]``."""

    @abstractmethod
    def arranged(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes in the layout of the product, of as many bytes as packed."""

    @abstractmethod
    def codes(self, arranged: torch.Tensor) -> torch.Tensor:
        """Return arranged codes as they were."""

    @abstractmethod
    def beside(self, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        """Return what the product reads beside the codes, from scales and zero points of shape ``[d_out, groups]``."""

    def product(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """Return the product of ``x``, shape ``[..., d_in]``, with the matrix, shape ``[..., d_out]``."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= _MOST_ROWS:
            found = self._with_few(rows.to(torch.bfloat16), arranged, beside).to(x.dtype)
        else:
            found = self._with_many(rows.to(_dtype_of_products(x)), arranged, beside).to(x.dtype)
        return found.view(*x.shape[:-1], found.shape[-1])

    @abstractmethod
    def _with_few(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _with_many(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor: ...


def _dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which unpacked matrices are multiplied: fp32 where bf16 has no instructions."""
    slow = x.dtype == torch.bfloat16 and x.is_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if slow else x.dtype


class EightBits(Kernel):
    """Symmetric 8-bit codes with one scale per output."""

    def arranged(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the signed codes, int8, shape ``[d_out, d_in]``."""
        return (codes ^ 128).view(torch.int8)

    def codes(self, arranged: torch.Tensor) -> torch.Tensor:
        """Return arranged codes as they were."""
        return arranged.view(torch.uint8) ^ 128

    def beside(self, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        """Return the scales, bf16, shape ``[d_out]``."""
        return scales[:, 0].to(torch.bfloat16).contiguous()

    def _with_few(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(x, arranged, beside)

    def _with_many(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        parts = [nn.functional.linear(x, part.to(x.dtype)) for part in arranged.split(max(1, _PART // x.shape[1]))]
        return torch.cat(parts, 1) * beside.to(x.dtype)


class FourBits(Kernel):
    """4-bit codes in groups of 32, 64, 128 or 256 inputs.

    The layout depends on the instructions of the processor: blocks of ``block`` outputs, which follow one another for
    every input, two codes in a byte, the first in the lower bits.

    Args:
        group: Inputs per group.
        block: Outputs per block.
        low: Which output of its block the lower bits of every byte hold.
        high: The same of the upper bits.
    """

    def __init__(self, group: int, block: int, low: torch.Tensor, high: torch.Tensor) -> None:
        self.group, self.block = group, block
        self._outputs = torch.cat([low, high])
        self._places = None if torch.equal(self._outputs, torch.arange(block)) else self._outputs.argsort()

    def arranged(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the codes in blocks, uint8, shape ``[d_out, d_in / 2]``."""
        return _four_bit_layout(codes)

    def codes(self, arranged: torch.Tensor) -> torch.Tensor:
        """Return arranged codes as they were."""
        d_out, d_in = len(arranged), 2 * arranged.shape[1]
        in_place = torch.empty(d_out // self.block, self.block, d_in, dtype=torch.uint8)
        columns = self._in_columns(arranged.view(-1, d_in, self.block // 2), torch.uint8)
        in_place[:, self._outputs] = columns.view(d_in, -1, self.block).permute(1, 2, 0)
        return in_place.view(d_out, d_in)

    def beside(self, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        """Return every scale and the number that code 8 stands for, bf16, shape ``[groups, d_out, 2]``."""
        return torch.stack([scales, (8 - zeros) * scales], -1).transpose(0, 1).to(torch.bfloat16).contiguous()

    def _with_few(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, arranged, self.group, beside)
        return product

    def _with_many(self, x: torch.Tensor, arranged: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        d_in, groups, block = x.shape[1], len(beside), self.block
        scales, eights = beside.to(x.dtype).unbind(-1)
        # A code c stands for c scale + (eight - 8 scale); the second part needs the sum of the inputs of a group only.
        product = x.view(len(x), groups, -1).sum(-1) @ (eights - 8 * scales)
        many = max(1, _PART // (block * d_in)) * block
        parts = zip(arranged.split(many), scales.split(many, 1), product.split(many, 1), strict=True)
        for part, scale, found in parts:
            matrix = self._in_columns(part.view(-1, d_in, block // 2), x.dtype)
            matrix.view(groups, self.group, -1).mul_(self._reordered(scale, self._outputs)[:, None])
            found += self._reordered(x @ matrix, self._places)
        return product

    def _in_columns(self, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the codes of blocks, shape ``[d_in, outputs]``, the outputs of a block in the order of the layout."""
        count, d_in, half = blocks.shape
        columns = torch.empty(d_in, count, 2, half, dtype=dtype)
        columns[:, :, 0], columns[:, :, 1] = (blocks & 15).transpose(0, 1), (blocks >> 4).transpose(0, 1)
        return columns.view(d_in, 2 * count * half)

    def _reordered(self, columns: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Return columns with those of every block at other places; None: as they are."""
        if self._places is None or places is None:
            return columns
        return columns.view(len(columns), -1, self.block)[:, :, places].view(len(columns), -1)


def _four_bit_layout(codes: torch.Tensor) -> torch.Tensor:
    layout: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return layout


def kernel_for(grid: Grid, d_in: int, d_out: int, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """Return the product for a matrix on a grid; None: there is none for its numbers, device or dtype."""
    reads = _reads_four_bits(grid, d_in, d_out) or _reads_eight_bits(grid, d_in)
    if not reads or dtype not in _DTYPES or d_in * d_out < _LEAST_NUMBERS or device.type == "meta":
        return None
    key = (grid.bits, grid.group if grid.bits == 4 else 0, device.type)
    if key not in _FOUND:
        _FOUND[key] = _find(*key)
    return _FOUND[key]


def _reads_eight_bits(grid: Grid, d_in: int) -> bool:
    return grid.bits == 8 and grid.symmetric and grid.group >= d_in


def _reads_four_bits(grid: Grid, d_in: int, d_out: int) -> bool:
    return grid.bits == 4 and grid.group in (32, 64, 128, 256) and d_in % grid.group == 0 and d_out % _PROBE == 0


_PROBE = 64  # outputs; a multiple of all blocks
_FOUND: dict[tuple[int, int, str], Kernel | None] = {}  # not functools.cache, which torch.compile looks through


def _find(bits: int, group: int, device: str) -> Kernel | None:
    """Return the product of a device after a test, or say that there is none."""
    kernel: Kernel | None = None
    if device == "cpu":
        kernel = _eight_bits_on_cpu() if bits == 8 else _four_bits_on_cpu(group)
    if kernel is None:
        warnings.warn(
            f"PyTorch has no product with {bits}-bit weights for this {device}: they are unpacked at every use, which "
            "is slower.",
            stacklevel=3,
        )
    return kernel


@torch.no_grad()
def _multiplies(kernel: Kernel, group: int, symmetric: bool) -> bool:
    """Return whether a product gives what it should, with few rows and with many."""
    generator = torch.Generator().manual_seed(0)
    d_in = max(group, 256)
    codes = torch.randint(0, 256 if symmetric else 16, (_PROBE, d_in), generator=generator).to(torch.uint8)
    scales = torch.rand(_PROBE, d_in // group, generator=generator).bfloat16().float() + 0.5
    zeros = torch.full_like(scales, 128 if symmetric else 8)
    matrix = ((codes.view(_PROBE, -1, group) - zeros[:, :, None]) * scales[:, :, None]).view(_PROBE, d_in)
    try:
        arranged, beside = kernel.arranged(codes), kernel.beside(scales, zeros)
        if not torch.equal(kernel.codes(arranged), codes):
            return False
        for rows in (1, 3, 2 * _MOST_ROWS):
            x = torch.randn(rows, d_in, generator=generator).bfloat16().float()
            exact, found = x @ matrix.T, kernel.product(x, arranged, beside)
            if not torch.allclose(found, exact, rtol=0.0, atol=0.02 * exact.abs().amax().item()):
                return False
    except (AttributeError, RuntimeError):
        return False
    return True


def _eight_bits_on_cpu() -> Kernel | None:
    kernel = EightBits()
    return kernel if _multiplies(kernel, 256, symmetric=True) else None


def _four_bits_on_cpu(group: int) -> Kernel | None:
    """Return the product with 4-bit codes, whose layout is found by arranging the numbers of the places."""
    d_out, d_in = 2 * _PROBE, 32
    places = torch.arange(d_out * d_in).view(d_out, d_in)
    held = torch.zeros(d_out * d_in, dtype=torch.int64)
    try:
        for shift in range(0, 12, 4):  # of 4096 places
            in_bytes = _four_bit_layout((places >> shift) & 15).flatten().long()
            held += torch.stack([in_bytes & 15, in_bytes >> 4], -1).flatten() << shift
    except (AttributeError, RuntimeError):
        return None
    for block in (16, 32, 64):
        outputs = held[:block] // d_in
        expected = (torch.arange(0, d_out, block)[:, None, None] + outputs) * d_in + torch.arange(d_in)[:, None]
        if torch.equal(held, expected.flatten()):
            kernel = FourBits(group, block, outputs[::2], outputs[1::2])
            return kernel if _multiplies(kernel, group, symmetric=False) else None
    return None
