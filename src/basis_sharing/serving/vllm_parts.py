"""What a layer in vLLM consists of: matrices, dense or in few bits, and bases that several layers may share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basis_sharing.runtime.entries_basis_sharing import Bits, Factors
from basis_sharing.runtime.factorized_basis_sharing import input_order
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear, pack, unpack


class Basis(nn.Module):
    """The rows of one or more bases in one tensor that this process needs.

    Args:
        group: The group of the basis, or one of those whose bases are side by side.
        d_in: Number of inputs over all processes.
        rank: Rank of this process.
        ranks: Number of processes among which the inputs are split.
        dtype: Dtype of the weights.

    Attributes:
        order: Indices of the inputs in order, if they have to be put in order and are not split; else None.
        order_name: Name of the order, the same for all bases in this order.
    """

    order: Tensor | None
    pivots: Tensor | None
    places: Tensor | None
    rest: Tensor | None

    def __init__(self, group: Factors, d_in: int, rank: int, ranks: int, dtype: torch.dtype) -> None:
        super().__init__()
        first, last = rank * (d_in // ranks), (rank + 1) * (d_in // ranks)
        columns = slice(first, last)
        self.pivoted, self.whole, self.rank = group.form == "pivoted", ranks == 1, group.rank
        self.order_name = " ".join(group.order) or group.owner
        indices: dict[str, Tensor | None] = dict.fromkeys(("order", "pivots", "places", "rest"))
        if self.pivoted:
            order = input_order(group, d_in).long().cpu()
            pivots, rest = order.split((group.rank, d_in - group.rank))
            if not self.whole:
                mine, theirs = ((part >= first) & (part < last) for part in (pivots, rest))
                indices = {
                    "order": None,
                    "pivots": pivots[mine] - first,
                    "places": mine.nonzero()[:, 0],
                    "rest": rest[theirs] - first,
                }
                before = int((rest < first).sum())
                columns = slice(before, before + int(theirs.sum()))
            else:
                columns = slice(0, len(rest))
                if not torch.equal(order, torch.arange(d_in)):
                    indices["order"] = order
        for name, values in indices.items():
            on_device = None if values is None else values.to(torch.get_default_device())
            self.register_buffer(name, on_device, persistent=False)
        rows = group.rank if group.rows is None else group.rows[1]
        self._columns, stored = columns, columns.stop - columns.start
        self.matrix = Matrix(stored, rows, group.basis_grid, dtype)

    def load(self, name: str, tensor: Tensor) -> None:
        """Load this process' columns of a tensor on disk."""
        if self.matrix.grid is None:
            tensor = tensor[:, self._columns]
        self.matrix.load(name, tensor, slice(None))

    def forward(self, x: Tensor) -> Tensor:
        """Return the contribution of this process' inputs, in order, to the hidden vectors, shape ``[..., rows]``."""
        if not self.pivoted:
            hidden: Tensor = self.matrix(x)
            return hidden
        if self.whole:
            leading, others = x.split((self.rank, x.shape[-1] - self.rank), dim=-1)
            product = self.matrix(others).unflatten(-1, (-1, self.rank))
            hidden = (product + leading.unsqueeze(-2)).flatten(-2)
            return hidden
        assert self.pivots is not None
        assert self.places is not None
        assert self.rest is not None
        hidden = self.matrix(x.index_select(-1, self.rest))
        return hidden.index_add(-1, self.places, x.index_select(-1, self.pivots))


class Matrix(nn.Module):
    """A matrix of this process, in the model's dtype or in few bits.

    Args:
        inputs: Number of inputs on this process.
        outputs: Number of outputs on this process.
        grid: What it is rounded to; None: it is not.
        dtype: Dtype of the weights or scales.
    """

    def __init__(self, inputs: int, outputs: int, grid: Grid | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.grid, self.inputs, self.outputs = grid, inputs, outputs
        if grid is None:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype), requires_grad=False)
        else:
            self.rounded = RoundedLinear(inputs, outputs, grid, dtype=dtype).requires_grad_(False)

    def load(self, name: str, numbers: Tensor, rows: slice) -> None:
        """Load numbers of a tensor for some outputs.

        Args:
            name: Which tensor: ``weight``, in few bits the codes; ``scales`` or ``zero_points``.
            numbers: Its numbers for these outputs and the inputs of this process, not packed.
            rows: The outputs; all of them for a matrix in few bits.
        """
        if self.grid is None:
            self.weight.data[rows].copy_(numbers)
        elif name == "weight":
            self.rounded.packed.data.copy_(pack(numbers, self.grid))
        elif name == "scales":
            self.rounded.scales.data.copy_(numbers)
        else:
            assert self.rounded.zero_points is not None
            self.rounded.zero_points.data.copy_(pack(numbers.T.contiguous(), self.grid).T)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``[..., inputs]`` to ``[..., outputs]``."""
        product: Tensor = nn.functional.linear(x, self.weight) if self.grid is None else self.rounded(x)
        return product


class Part(nn.Module):
    """A projection of a layer that is compressed, or consecutive dense ones.

    Args:
        entry: Its entry; None: it is dense.
        basis: Its basis; None: it has none.
        outputs: Number of outputs on this process.
        columns: Rank of the basis; without one, number of inputs on this process.
        dtype: Dtype of the weights.
    """

    def __init__(
        self, entry: Factors | Bits | None, basis: Basis | None, outputs: int, columns: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.basis, self.columns = basis, columns
        self.first = entry.rows[0] if isinstance(entry, Factors) and entry.rows is not None else 0
        self.matrix = Matrix(columns, outputs, None if entry is None else entry.grid("weight"), dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map the hidden vectors of its basis (the input, if it has none) to its outputs."""
        own = hidden if hidden.shape[-1] == self.columns else hidden.narrow(-1, self.first, self.columns)
        product: Tensor = self.matrix(own)
        return product


@dataclass(frozen=True)
class Place:
    """Where a tensor on disk belongs: the outputs ``start`` to ``stop`` of a part."""

    part: Part
    start: int
    stop: int


def numbers_of(name: str, tensor: Tensor, grid: Grid | None, inputs: int, outputs: int) -> Tensor:
    """Return the numbers of a tensor on disk, not packed, with a row for every output.

    Args:
        name: Which tensor of the matrix it is.
        tensor: The tensor.
        grid: What the matrix is rounded to; None: it is not.
        inputs: Number of its inputs over all processes.
        outputs: Number of its outputs over all processes.
    """
    if grid is None or name == "scales":
        return tensor
    if name == "weight":
        return unpack(tensor, grid, inputs)
    return unpack(tensor.T, grid, outputs).T


def routing_parameter(name: str, load: Callable[[str, Tensor, str | int | None], None]) -> nn.Parameter:
    """Return an empty parameter with a loader that passes tensors on disk, and their name, to their part."""
    parameter = nn.Parameter(torch.empty(0), requires_grad=False)

    def loader(_: nn.Parameter, tensor: Tensor, shard: str | int | None = None) -> None:
        load(name, tensor, shard)

    parameter.weight_loader = loader  # type: ignore[attr-defined]
    return parameter
