"""Statistics of the inputs of projections: accumulation, and storage between calibration and factorization."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from basis_sharing.run.durable import write_whole
from basis_sharing.run.processes import Processes

_TILE = 512
_TENSORS = ("gram", "abs_sum", "gradient", "visits", "squares")


@dataclass
class Moments:
    """Statistics of one input or, for ``gradient``, of one projection; statistics that were not collected are None.

    Attributes:
        tokens: Number of tokens.
        gram: Sum of x^T x over the tokens, shape ``[d_in, d_in]``, fp32.
        abs_sum: Sum of |x| over the tokens, shape ``[d_in]``, fp64.
        gradient: Sum of g^T g over the tokens, g the loss gradient at the output, shape ``[d_out, d_out]``, fp32.
        visits: Number of tokens that each expert is given, shape ``[experts]``, int64; for what experts read.
        squares: Sums of squares of each feature for each expert, shape ``[experts, features]``, fp64.
    """

    tokens: int = 0
    gram: Tensor | None = None
    abs_sum: Tensor | None = None
    gradient: Tensor | None = None
    visits: Tensor | None = None
    squares: Tensor | None = None


@dataclass(frozen=True)
class Statistics:
    """The statistics to collect, as fields of :class:`Moments`."""

    gram: bool = False
    abs_sum: bool = False


class MomentAccumulator:
    """Accumulates the statistics of one input over many calls.

    Only the tiles on and above the diagonal of the Gram matrix are computed. Products are computed in fp32 or in the
    dtype of the activations, and summed in fp32.

    Args:
        d_in: Number of features.
        statistics: The statistics to collect.
        device: Where the activations are.
    """

    def __init__(self, d_in: int, statistics: Statistics, device: torch.device) -> None:
        self._moments = Moments(
            gram=torch.zeros(d_in, d_in, dtype=torch.float32, device=device) if statistics.gram else None,
            abs_sum=torch.zeros(d_in, dtype=torch.float64, device=device) if statistics.abs_sum else None,
        )
        count = -(-d_in // _TILE)
        self._edges = [round(i * d_in / count) for i in range(count + 1)]

    def add(self, x: Tensor) -> bool:
        """Add the tokens of ``x``, shape ``[tokens, d_in]``, and return whether the sums are finite."""
        moments = self._moments
        moments.tokens += x.shape[0]
        watched = torch.zeros(())
        if moments.gram is not None:
            split = x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.cpu._is_amx_tile_supported()
            add_product = add_split_product if split else add_product_fp32
            x = x if split else x.float()
            tiles = list(pairwise(self._edges))
            for i, (top, bottom) in enumerate(tiles):
                for start, stop in tiles[i:]:
                    add_product(moments.gram[top:bottom, start:stop], x[:, top:bottom], x[:, start:stop])
            watched = moments.gram.diagonal().sum()
        if moments.abs_sum is not None:
            moments.abs_sum += x.abs().sum(0, dtype=torch.float64)
            watched = moments.abs_sum.sum()
        return bool(torch.isfinite(watched))

    def finish(self, processes: Processes) -> Moments:
        """Return the statistics summed over all processes, on the CPU, with the complete Gram matrix."""
        moments = self._moments
        tokens = torch.tensor(moments.tokens)
        processes.add_up(tokens)
        moments.tokens = int(tokens)
        if moments.gram is not None:
            tiles = list(pairwise(self._edges))
            for i, (top, bottom) in enumerate(tiles):
                square = moments.gram[top:bottom, top:bottom]
                square.copy_(square.triu() + square.triu(1).T)
                for start, stop in tiles[i + 1 :]:
                    moments.gram[start:stop, top:bottom] = moments.gram[top:bottom, start:stop].T
            processes.add_up(moments.gram)
            moments.gram = moments.gram.cpu()
        if moments.abs_sum is not None:
            processes.add_up(moments.abs_sum)
            moments.abs_sum = moments.abs_sum.cpu()
        return moments


def add_product_fp32(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to ``total``, ``[a, b]``, for operands ``[tokens, a]`` and ``[tokens, b]``, all fp32."""
    total.addmm_(left.T, right)


def add_split_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to ``total`` with bf16 products and fp32 sums, although PyTorch returns bf16 results.

    PyTorch rounds the result of a bf16 product on the CPU to bf16, which makes second moments indefinite. The
    rounding error is therefore computed by a second product, [left; -high]^T [right; I], whose sums inside the
    processor are fp32, and added as well, which yields 16 bits of the result. This is worthwhile only if bf16 products
    are several times faster than fp32 ones (AMX).
    """
    high = left.T @ right
    identity = torch.eye(right.shape[1], dtype=right.dtype, device=right.device)
    low = torch.cat([left, -high.T]).T @ torch.cat([right, identity])
    total += high
    total += low


class MomentStore:
    """Moments by block and by name of an input or a projection, in memory or in a folder.

    Args:
        folder: Folder with one file per block; None: everything is kept in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._blocks: dict[int, Mapping[str, Moments]] = {}

    def put(self, block: int, moments: Mapping[str, Moments]) -> None:
        """Store the moments of one decoder block."""
        if self._folder is None:
            self._blocks[block] = moments
            return
        tensors: dict[str, Tensor] = {}
        for name, moment in moments.items():
            tensors[f"{name}/tokens"] = torch.tensor(moment.tokens)
            for kind in _TENSORS:
                tensor = getattr(moment, kind)
                if tensor is not None:
                    tensors[f"{name}/{kind}"] = tensor
        write_whole(self._path(block), lambda path: save_file(tensors, path))

    def fill(self, blocks: Iterable[tuple[int, Mapping[str, Moments]]]) -> None:
        """Store the moments of blocks as a sweep yields them."""
        for block, moments in blocks:
            self.put(block, moments)

    def get(self, block: int, name: str) -> Moments:
        """Return the moments of one input or projection."""
        if self._folder is None:
            return self._blocks[block][name]
        with safe_open(self._path(block), framework="pt") as file:
            stored = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}/")}  # noqa: SIM118
        tensors = {kind: stored.get(f"{name}/{kind}") for kind in _TENSORS}
        return Moments(int(stored[f"{name}/tokens"]), **tensors)

    def total(self, keys: Iterable[tuple[int, str]]) -> Moments:
        """Return the moments of several inputs of one width, summed as if they were one input."""
        total = Moments()
        for block, name in keys:
            part = self.get(block, name)
            total = Moments(
                tokens=total.tokens + part.tokens,
                gram=_sum(total.gram, part.gram),
                abs_sum=_sum(total.abs_sum, part.abs_sum),
            )
        return total

    def _path(self, block: int) -> Path:
        assert self._folder is not None
        return self._folder / f"moments-{block:04d}.safetensors"


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if total is None or part is None else total + part
