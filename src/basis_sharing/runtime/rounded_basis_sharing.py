# SPDX-License-Identifier: Apache-2.0
"""The module of a matrix in few bits, and the packing of its numbers.

A matrix of shape ``[d_out, d_in]`` is ``(codes - zero_point) * scale``, with a scale and a zero point for every group
of consecutive inputs of an output; the zero point of a symmetric grid is ``2^(bits - 1)``. Codes are packed along the
inputs into 32-bit words, the first in the lowest bits, zero points likewise along the outputs. Of 2, 4 and 8 bits this
is the layout ``pack-quantized`` of compressed-tensors. Codes of other widths are parted into planes of powers of two,
the highest bits first, each of which is packed like this. This file is copied into every checkpoint.
"""

from threading import Lock
from typing import Any

import torch
from torch import nn

from .format_basis_sharing import FormatError, Grid
from .kernels_basis_sharing import Kernel, kernel_for

_ARRANGING = Lock()


def pack(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return codes of shape ``[rows, count]`` (uint8) packed along ``count``: int32, shape ``[rows, words]``."""
    rows, count = codes.shape
    parts, below = [], grid.bits
    for width in grid.planes:
        below -= width
        per_word = 32 // width
        values = (codes >> below) & (2**width - 1)
        padded = torch.zeros(rows, -(-count // per_word) * per_word, dtype=torch.int64, device=codes.device)
        padded[:, :count] = values
        shifts = torch.arange(per_word, device=codes.device) * width
        words = (padded.view(rows, -1, per_word) << shifts).sum(-1)
        parts.append(torch.where(words >= 2**31, words - 2**32, words).int())
    return torch.cat(parts, 1)


def unpack(packed: torch.Tensor, grid: Grid, count: int) -> torch.Tensor:
    """Return packed codes, uint8, shape ``[rows, count]``."""
    rows, codes, start = len(packed), None, 0
    for width in grid.planes:
        per_word = 32 // width
        stop = start - (-count // per_word)
        # Bytes of a word are its lowest bits first.
        in_bytes = packed[:, start:stop].contiguous().flatten().view(torch.uint8).view(rows, -1)
        if width < 8:
            shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
            in_bytes = ((in_bytes[:, :, None] >> shifts) & (2**width - 1)).view(rows, -1)
        values = in_bytes[:, :count]
        codes = values if codes is None else (codes << width) | values
        start = stop
    assert codes is not None
    return codes


def on_grid(codes: torch.Tensor, scale: torch.Tensor, zero: Any, group: int) -> torch.Tensor:
    """Return ``(codes - zero) * scale``, shape ``[d_out, d_in]``.

    Args:
        codes: The codes, in the dtype of the scales, shape ``[d_out, d_in]``.
        scale: Shape ``[d_out, groups]``.
        zero: A number, or zero points of shape ``[d_out, groups, 1]``.
        group: Inputs per group.
    """
    (d_out, d_in), groups = codes.shape, scale.shape[1]
    missing = groups * group - d_in
    grouped = (nn.functional.pad(codes, (0, missing)) if missing else codes).view(d_out, groups, group)
    matrix: torch.Tensor = ((grouped - zero) * scale[:, :, None]).view(d_out, -1)
    return matrix[:, :d_in]


class RoundedLinear(nn.Module):
    """A linear layer y = x W^T + b whose weight is stored in few bits.

    Where PyTorch has a product for them, codes are brought into its layout, in their own memory, when the layer is
    first used without gradients, and packed again before they are saved or moved.

    Args:
        d_in: Number of input features.
        d_out: Number of output features.
        grid: What the weight is rounded to.
        bias: Whether a bias is added.
        device: Device of the (uninitialised) tensors.
        dtype: Dtype of the scales and the bias.

    Attributes:
        packed: The codes of the weight: packed, int32, or in the layout of a product, in 8-bit integers.
        scales: Scale of every group, shape ``[d_out, groups]``.
        zero_points: Zero point of every group, packed, int32; None for symmetric grids.
        bias: The bias, or None.
    """

    zero_points: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        grid: Grid,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.grid = d_in, d_out, grid
        groups = grid.groups(d_in)

        def whole(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.int32, device=device), requires_grad=False)

        self.packed = whole(d_out, grid.words(d_in))
        self.scales = nn.Parameter(torch.empty(d_out, groups, device=device, dtype=dtype))
        self.zero_points = None if grid.symmetric else whole(grid.words(d_out), groups)
        self.bias = nn.Parameter(torch.empty(d_out, device=device, dtype=dtype)) if bias else None
        self._beside: tuple[int, torch.Tensor] | None = None

    def extra_repr(self) -> str:
        """Return the sizes and the grid."""
        return f"{self.in_features}, {self.out_features}, {self.grid}, bias={self.bias is not None}"

    @property
    def weight(self) -> torch.Tensor:
        """The weight, shape ``[d_out, d_in]``, in the dtype of the scales."""
        return self.matrix(self.scales.dtype)

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight in a dtype, shape ``[d_out, d_in]``."""
        zero: Any = 2 ** (self.grid.bits - 1) if self.zero_points is None else self._zeros().to(dtype)[:, :, None]
        return on_grid(self.codes().to(dtype), self.scales.to(dtype), zero, self.grid.group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` of shape ``[..., d_in]`` to ``[..., d_out]``."""
        trained = torch.is_grad_enabled() and (x.requires_grad or self.scales.requires_grad)
        kernel = None if trained else self._kernel(x)
        if kernel is None:
            return nn.functional.linear(x, self.matrix(x.dtype), self.bias)
        product = kernel.product(x, self.packed, self._read_beside(kernel))
        return product if self.bias is None else product + self.bias

    def _kernel(self, x: torch.Tensor) -> Kernel | None:
        """Return the product for the weight, after bringing codes into its layout; None: there is none."""
        if torch.compiler.is_compiling() and not self.is_arranged:
            return None
        kernel = kernel_for(self.grid, self.in_features, self.out_features, x.device, x.dtype)
        if kernel is not None and not self.is_arranged:
            with _ARRANGING, torch.inference_mode(False), torch.no_grad():
                if not self.is_arranged:
                    self.packed.data = kernel.arranged(self.codes())
        return kernel

    def arrange(self) -> None:
        """Bring codes into the layout of a product now, if there is one, as it otherwise happens at the first use."""
        kernel = self._kernel(self.scales)
        if kernel is not None:
            self._read_beside(kernel)

    @property
    def is_arranged(self) -> bool:
        """Whether codes are in the layout of a product."""
        return self.packed.dtype != torch.int32

    def _read_beside(self, kernel: Kernel) -> torch.Tensor:
        """Return what a product reads beside the codes, which is made anew when scales have changed."""
        version = 0 if torch.compiler.is_compiling() or self.scales.is_inference() else self.scales._version
        if self._beside is None or (self._beside[0] != version and not torch.compiler.is_compiling()):
            with torch.inference_mode(False), torch.no_grad():
                self._beside = (version, kernel.beside(self.scales.float(), self._zeros().float()))
        return self._beside[1]

    def codes(self) -> torch.Tensor:
        """Return the codes, uint8, shape ``[d_out, d_in]``."""
        return self._codes_in(self.packed)

    def _codes_in(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the codes of all rows of ``packed``, or in 8 bits of some, uint8, shape ``[rows, d_in]``."""
        if not self.is_arranged:
            return unpack(rows, self.grid, self.in_features)
        kernel = kernel_for(self.grid, self.in_features, self.out_features, self.packed.device, torch.float32)
        assert kernel is not None
        return kernel.codes(rows)

    def _zeros(self) -> torch.Tensor:
        """Return the zero points, shape ``[d_out, groups]``."""
        if self.zero_points is None:
            return torch.full_like(self.scales, 2 ** (self.grid.bits - 1))
        return unpack(self.zero_points.T, self.grid, self.out_features).T

    def _pack_again(self) -> None:
        """Bring the codes back from the layout of a product, which belongs to this machine."""
        self._beside = None
        if self.is_arranged:
            with _ARRANGING, torch.inference_mode(False), torch.no_grad():
                if self.is_arranged:
                    self.packed.data = pack(self.codes(), self.grid)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._pack_again()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._pack_again()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._pack_again()
        super()._load_from_state_dict(*arguments)

    def counted(self) -> dict[nn.Parameter, int]:
        """Return how many parameters of the model every tensor holds: codes count, scales and zero points do not."""
        beside = [one for one in (self.scales, self.zero_points) if one is not None]
        return {self.packed: self.in_features * self.out_features, **dict.fromkeys(beside, 0)}

    def check(self, name: str) -> None:
        """Make sure that the scales are numbers.

        Args:
            name: Path of the module.

        Raises:
            FormatError: They are not.
        """
        if not torch.isfinite(self.scales).all():
            raise FormatError(f"the scales of {name} contain NaN or infinity: the checkpoint is damaged.")


class RoundedEmbedding(RoundedLinear):
    """A table of embeddings in 8 bits, stored like the weight of a linear layer, which may be tied to it.

    Args:
        count: Number of embeddings.
        width: Features of each.
        grid: What the table is rounded to, symmetric.
        multiplier: What embeddings are multiplied by after they are looked up.
        device: Device of the (uninitialised) tensors.
        dtype: Dtype of the scales and of the embeddings.
    """

    def __init__(
        self,
        count: int,
        width: int,
        grid: Grid,
        multiplier: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, count, grid, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim, self.multiplier = count, width, multiplier

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens, shape ``[..., width]``."""
        at = ids.flatten()
        codes, scales = self._codes_in(self.packed[at]), self.scales[at]
        found = on_grid(codes.to(scales.dtype), scales, 2 ** (self.grid.bits - 1), self.grid.group)
        if self.multiplier != 1.0:
            found = found * torch.tensor(self.multiplier, dtype=found.dtype, device=found.device)
        return found.view(*ids.shape, self.embedding_dim)


def matrix_layer(
    d_in: int,
    d_out: int,
    bias: bool,
    grid: Grid | None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Return an uninitialised linear layer, in few bits if a grid is given."""
    if grid is None:
        return nn.Linear(d_in, d_out, bias=bias, device=device, dtype=dtype)
    return RoundedLinear(d_in, d_out, grid, bias, device, dtype)
