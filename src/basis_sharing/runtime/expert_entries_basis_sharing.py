# SPDX-License-Identifier: Apache-2.0
"""The kinds of entries for the experts of mixtures: narrow experts, and experts with factors of their own.

This file is copied into every checkpoint and needs neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .format_basis_sharing import Entry, FormatError, Product, Shape, Stored, register_entry

NARROWEST = 8
"""What widths of experts are multiples of: products for groups of tokens need rows of whole 16 bytes."""


@register_entry
@dataclass(frozen=True, kw_only=True)
class Narrow(Entry):
    """Experts of one block at a smaller width, between two bases: y = (sum_e w_e expert_e(x A)) Z.

    Attributes:
        width: Width of their input and output.
        count: Number of experts.
        active: Number of experts per token.
        weights: Names of their parameters.
    """

    kind: ClassVar[str] = "experts"

    width: int
    count: int
    active: int
    weights: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "count", "active"):
            value = getattr(self, name)
            if not _whole(value):
                raise FormatError(f"the entry of {self.owner} has {name} {value!r}; a positive integer is needed.")
        _check_one_block(self)
        object.__setattr__(self, "weights", tuple(self.weights))

    @property
    def label(self) -> str:
        """The width."""
        return str(self.width)

    @property
    def title(self) -> str:
        """The width."""
        return f"width {self.width}"

    def fit(self, shapes: Sequence[Shape]) -> None:
        """Make sure that the experts become narrower.

        Raises:
            FormatError: They do not.
        """
        ((d_in, _),) = shapes
        if self.width > d_in or self.width % NARROWEST:
            raise FormatError(
                f"the entry of {self.owner} has width {self.width}; a multiple of {NARROWEST} up to {d_in} is needed."
            )

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the two bases and the weights of the experts."""
        return narrow_tensors(shapes[0], self.width)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products with the bases and with the experts of one token."""
        return narrow_products(shapes[0], self.width, self.count, self.active)

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the bases, and the weights of the experts."""
        name = self.owner
        bases = {f"{name}.input_basis.weight": (self.width, None), f"{name}.output_basis.weight": (None, self.width)}
        own = {f"{name}.{weight}": (None,) * (2 if weight.endswith("bias") else 3) for weight in self.weights}
        return {**bases, **own}

    def kept(self, shapes: Sequence[Shape]) -> float:
        """Return the width as a fraction of the model's."""
        return self.width / shapes[0][0]


def narrow_tensors(shape: Shape, width: Any) -> tuple[Stored, ...]:
    """Return the tensors of narrow experts.

    Args:
        shape: Width of the model, and the numbers in the weights of all experts for each of its features.
        width: Width of the experts, or an array of such numbers.
    """
    d_in, d_out = shape
    return (Stored((width, d_in)), Stored((d_in, width)), Stored((width, d_out), member=0))


def narrow_products(shape: Shape, width: Any, count: int, active: int) -> tuple[Product, ...]:
    """Return the products of narrow experts for one token: with both bases, and with the weights of its experts.

    Args:
        shape: Width of the model, and the numbers in the weights of all experts for each of its features.
        width: Width of the experts, or an array of such numbers.
        count: Number of experts.
        active: Number of experts per token.
    """
    d_in, d_out = shape
    return (Product(d_in, width), Product(width, d_out // count, active), Product(width, d_in))


@register_entry
@dataclass(frozen=True, kw_only=True)
class ExpertFactors(Entry):
    """The experts of one block, each of whose matrices has factors of its own, or stays dense.

    Attributes:
        count: Number of experts.
        active: Number of experts per token.
        sizes: ``[inputs, outputs]`` of the matrices of an expert by name.
        ranks: The rank of every expert for each of these matrices; 0: it stays dense.
    """

    kind: ClassVar[str] = "expert-factors"

    count: int
    active: int
    sizes: Mapping[str, tuple[int, int]]
    ranks: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_block(self)
        if not _whole(self.count) or not _whole(self.active):
            raise FormatError(f"the entry of {self.owner} needs count and active, positive integers.")
        both = isinstance(self.sizes, Mapping) and isinstance(self.ranks, Mapping)
        if not both or set(self.sizes) != set(self.ranks):
            raise FormatError(f"the entry of {self.owner} needs sizes and ranks of the same matrices.")
        for name, size in self.sizes.items():
            ranks = self.ranks[name]
            if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(map(_whole, size)):
                raise FormatError(
                    f"the entry of {self.owner} has the sizes {size!r} of {name}; two integers are needed."
                )
            if not isinstance(ranks, (list, tuple)) or len(ranks) != self.count:
                raise FormatError(f"the entry of {self.owner} needs a rank of {name} for each of {self.count} experts.")
            wrong = next((r for r in ranks if r != 0 and not (_whole(r) and r <= min(size))), None)
            if wrong is not None:
                raise FormatError(
                    f"the entry of {self.owner} has rank {wrong!r} of {name}; 0 to {min(size)} are possible."
                )
        object.__setattr__(self, "sizes", {name: tuple(size) for name, size in self.sizes.items()})
        object.__setattr__(self, "ranks", {name: tuple(own) for name, own in self.ranks.items()})

    @property
    def label(self) -> str:
        """The mean rank."""
        return f"~{self._mean():.0f}"

    @property
    def title(self) -> str:
        """The least and the largest rank."""
        found = [rank for own in self.ranks.values() for rank in own if rank]
        return f"ranks {min(found)} to {max(found)} of its own" if found else "dense"

    def _mean(self) -> float:
        found = [r or min(self.sizes[name]) for name, own in self.ranks.items() for r in own]
        return sum(found) / len(found)

    def fit(self, shapes: Sequence[Shape]) -> None:
        """Make sure that the matrices are those of the experts.

        Raises:
            FormatError: They are not.
        """
        ((d_in, d_out),) = shapes
        if sum(a * b for a, b in self.sizes.values()) * self.count != d_in * d_out:
            raise FormatError(f"the entry of {self.owner} has matrices of other sizes than its experts.")

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the dense matrices, bases and coefficients."""
        return tuple(Stored(shape, member=0) for shape in expert_tensors(self.sizes, self.ranks).values())

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products with the experts of one token, at the rank with their mean multiplications."""
        found = []
        for name, (a, b) in self.sizes.items():
            numbers = sum(rank * (a + b) if rank else a * b for rank in self.ranks[name]) / self.count
            rank = max(1, round(numbers / (a + b)))
            found += [Product(a, rank, self.active), Product(rank, b, self.active)]
        return tuple(found)

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the dense matrices, bases and coefficients."""
        return {f"{self.owner}.{name}": shape for name, shape in expert_tensors(self.sizes, self.ranks).items()}

    def kept(self, shapes: Sequence[Shape]) -> float:
        """Return the mean rank as a fraction of the highest useful one."""
        return self._mean() / (sum(min(size) for size in self.sizes.values()) / len(self.sizes))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        lists = {name: {key: list(value) for key, value in getattr(self, name).items()} for name in ("sizes", "ranks")}
        return {**super().to_dict(), **lists}


def _check_one_block(entry: Entry) -> None:
    """Check that an entry is for the experts of one block.

    Raises:
        FormatError: It is not.
    """
    if len(entry.members) > 1:
        raise FormatError(f"the entry of {entry.owner} names experts of {len(entry.members)} blocks; one is possible.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def expert_tensors(
    sizes: Mapping[str, tuple[int, int]], ranks: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of experts with factors of their own, by name.

    Args:
        sizes: ``(inputs, outputs)`` of every matrix of an expert, by name.
        ranks: The rank of every expert for each of them; 0: it stays dense.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, (d_in, d_out) in sizes.items():
        whole, rows = list(ranks[name]).count(0), sum(ranks[name])
        if whole:
            found[name] = (whole, d_out, d_in)
        if rows:
            found |= {f"{name}_basis": (rows, d_in), f"{name}_coeff": (rows, d_out)}
    return found
