# SPDX-License-Identifier: Apache-2.0
"""The kinds of entries: factors, weights in few bits, and embeddings in few bits.

This file is copied into every checkpoint and needs neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .format_basis_sharing import (
    GRID_DTYPES,
    Entry,
    FormatError,
    Grid,
    Product,
    Shape,
    Stored,
    matrix_tensors,
    on_disk_shapes,
    register_entry,
)

FORMS = ("plain", "pivoted")
ROUNDINGS = ("feedback", "gptq", "nearest")


@register_entry
@dataclass(frozen=True, kw_only=True)
class Factors(Entry):
    """A basis and, for every member, coefficients: W_i ~ B C_i.

    Attributes:
        rank: Number of basis vectors.
        form: ``"plain"``: all rows of B are stored; ``"pivoted"``: all but the ``rank`` rows that are the identity.
        pivots: Code of these rows, once they are known; None for plain factors.
        order: Codes of the nested sets of pivots that determine the order of the inputs, smallest first, ``pivots``
            among them; empty: ``pivots`` alone determines it.
        rows: First row of the basis in the tensor that holds it, and the rows of that tensor; None: it holds no other.
        beside: Owner of the entry under whose name that tensor is stored; None: this entry's own.
    """

    kind: ClassVar[str] = "factors"
    dtypes: ClassVar[frozenset[str]] = GRID_DTYPES

    rank: int
    form: str = "plain"
    pivots: str | None = None
    order: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None
    beside: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ungrouped = next((name for name, about in self.tensors.items() if about and Grid.of(about) is None), None)
        if ungrouped is not None and self.tensors[ungrouped].get("dtype", "model") != "model":
            raise FormatError(f"the entry of {self.owner} has {ungrouped} in few bits, but in no groups.")
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise FormatError(f"the entry of {self.owner} has rank {self.rank!r}; a positive integer is needed.")
        if self.form not in FORMS:
            raise FormatError(
                f"the entry of {self.owner} is stored in the form {self.form!r}, which this version does not know: "
                f"choose from {', '.join(FORMS)}, or update basis-sharing."
            )
        if self.pivots is not None and (self.form != "pivoted" or not isinstance(self.pivots, str)):
            raise FormatError(f"the entry of {self.owner} has pivots, but its form is {self.form}.")
        if not isinstance(self.order, (list, tuple)) or (self.order and self.pivots not in self.order):
            raise FormatError(f"the entry of {self.owner} has an order of inputs without its own pivots.")
        object.__setattr__(self, "order", tuple(self.order))
        if self.rows is not None:
            start, stored = self.rows
            if not 0 <= start <= start + self.rank <= stored:
                raise FormatError(f"the entry of {self.owner} has rows {start} to {start + self.rank} of {stored}.")
            object.__setattr__(self, "rows", (start, stored))

    @property
    def holder(self) -> str:
        """The projection under whose name the basis is stored."""
        return self.beside or self.owner

    def check_executed(self) -> None:
        """Check that pivoted factors have their pivots."""
        if self.form == "pivoted" and self.pivots is None:
            raise FormatError(f"the entry of {self.owner} is pivoted and must have pivots.")

    @property
    def label(self) -> str:
        """The rank, and the bits if it is rounded."""
        return str(self.rank) if (grid := self.grid("weight")) is None else f"{self.rank}/{grid.bits}b"

    @property
    def title(self) -> str:
        """Rank, form and bits."""
        bits = "" if (grid := self.grid("weight")) is None else f" in {grid.bits} bits"
        return f"rank {self.rank}" + ("" if self.form == "pivoted" else f" {self.form}") + bits

    def fit(self, shapes: Sequence[Shape]) -> None:
        """Make sure that the members have the same number of inputs, and the rank is not too high.

        Raises:
            FormatError: The entry does not fit.
        """
        widths = sorted({d_in for d_in, _ in shapes})
        if len(widths) > 1:
            raise FormatError(f"the entry of {self.owner} mixes inputs of {widths} features.")
        most = most_rank(shapes)
        if self.rank > most:
            raise FormatError(f"the entry of {self.owner} has rank {self.rank}, but its matrices have at most {most}.")

    @property
    def basis_grid(self) -> Grid | None:
        """What the basis is rounded to; None: it is not."""
        return self.grid("basis.weight")

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the basis, the coefficients and, for pivoted factors, the indices of pivots and other inputs."""
        return factor_tensors(shapes, self.rank, self.form, self.basis_grid, self.grid("weight"))

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products with the basis, one per input, and with the coefficients."""
        return factor_products(shapes, self.rank, self.form, inputs, self.basis_grid, self.grid("weight"))

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the basis and of the coefficients of every member."""
        stored = self.rank if self.rows is None else self.rows[1]
        shapes = on_disk_shapes(f"{self.holder}.basis.weight", (stored, None), self.basis_grid)
        for name in self.members:
            shapes |= on_disk_shapes(f"{name}.weight", (None, self.rank), self.grid("weight"))
        return shapes

    def kept(self, shapes: Sequence[Shape]) -> float:
        """Return the rank as a fraction of the highest useful rank of the group."""
        return self.rank / most_rank(shapes)


def most_rank(shapes: Sequence[Shape]) -> int:
    """Return the highest useful rank of a group of projections."""
    return min(shapes[0][0], sum(d_out for _, d_out in shapes))


def factor_tensors(
    shapes: Sequence[Shape], rank: Any, form: str, basis: Grid | None = None, coefficients: Grid | None = None
) -> tuple[Stored, ...]:
    """Return the tensors of factors: k (d_in + sum of d_out) numbers for rank k, minus k^2 in the pivoted form.

    Args:
        shapes: ``(d_in, d_out)`` of every member.
        rank: Number of basis vectors, or an array of such numbers.
        form: Form of the factors.
        basis: What the basis is rounded to.
        coefficients: What the coefficients are rounded to.
    """
    d_in = shapes[0][0]
    pivoted = form == "pivoted"
    private = (matrix_tensors(rank, d_out, coefficients, place) for place, (_, d_out) in enumerate(shapes))
    indices = (Stored((d_in,), "int32", buffer=True),) if pivoted else ()
    shared = matrix_tensors(d_in - rank if pivoted else d_in, rank, basis)
    return (*shared, *(tensor for tensors in private for tensor in tensors), *indices)


def factor_products(
    shapes: Sequence[Shape],
    rank: Any,
    form: str,
    inputs: int,
    basis: Grid | None = None,
    coefficients: Grid | None = None,
) -> tuple[Product, ...]:
    """Return the products of factors for one token; members with the same input use one product with the basis.

    Args:
        shapes: ``(d_in, d_out)`` of every member.
        rank: Number of basis vectors, or an array of such numbers.
        form: Form of the factors.
        inputs: Number of different inputs that the members read.
        basis: What the basis is rounded to.
        coefficients: What the coefficients are rounded to.
    """
    d_in = shapes[0][0]
    read = d_in - rank if form == "pivoted" else d_in
    return (
        Product(read, rank, inputs, basis),
        *(Product(rank, d_out, grid=coefficients) for _, d_out in shapes),
    )


@register_entry
@dataclass(frozen=True, kw_only=True)
class Bits(Entry):
    """A projection whose weight is rounded: ``tensors`` says to how many bits.

    Attributes:
        rounding: How it is rounded, not used for loading: ``"feedback"``: scales are searched, and errors made up for;
            ``"gptq"``: as GPTQ does it; ``"nearest"``: every number on its own.
    """

    kind: ClassVar[str] = "bits"
    dtypes: ClassVar[frozenset[str]] = GRID_DTYPES

    rounding: str = "feedback"

    @classmethod
    def of(cls, name: str, grid: Grid, rounding: str = "feedback") -> "Bits":
        """Return the entry that rounds the weight of a projection to a grid."""
        return cls(members=(name,), tensors={"weight": grid.about}, rounding=rounding)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.members) > 1 or set(self.tensors) != {"weight"} or self.grid("weight") is None:
            raise FormatError(f"the entry of {self.owner} has to name one member and the bits of its weight.")
        if self.rounding not in ROUNDINGS:
            raise FormatError(
                f"the entry of {self.owner} is rounded by {self.rounding!r}: choose from {', '.join(ROUNDINGS)}."
            )

    @property
    def weight_grid(self) -> Grid:
        """What the weight is rounded to."""
        grid = self.grid("weight")
        assert grid is not None
        return grid

    @property
    def label(self) -> str:
        """The bits."""
        return f"{self.weight_grid.bits}b"

    @property
    def title(self) -> str:
        """Bits and group."""
        return f"{self.weight_grid.bits} bits in groups of {self.weight_grid.group}"

    def fit(self, shapes: Sequence[Shape]) -> None:
        """Make sure that groups divide the inputs.

        Raises:
            FormatError: They do not.
        """
        ((d_in, _),) = shapes
        if d_in % self.weight_grid.group:
            raise FormatError(f"the entry of {self.owner} has groups of {self.weight_grid.group} in {d_in} inputs.")

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the packed weight, its scales and zero points."""
        ((d_in, d_out),) = shapes
        return self.weight_grid.stored(d_in, d_out, 0)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the product with the weight."""
        ((d_in, d_out),) = shapes
        return (Product(d_in, d_out, grid=self.weight_grid),)

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the packed weight, its scales and zero points."""
        return on_disk_shapes(f"{self.owner}.weight", (None, None), self.weight_grid)


@register_entry
@dataclass(frozen=True, kw_only=True)
class Embeddings(Entry):
    """The embeddings, with an output head that is tied to them, or an output head of its own, rounded: one table.

    It is no option of a plan: it concerns no projection of a decoder block.
    """

    kind: ClassVar[str] = "embeddings"
    dtypes: ClassVar[frozenset[str]] = GRID_DTYPES

    @classmethod
    def of(cls, names: Sequence[str], grid: Grid) -> "Embeddings":
        """Return the entry that rounds the table of modules to a grid."""
        return cls(members=tuple(names), tensors={"weight": grid.about})

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.grid("weight")
        if set(self.tensors) != {"weight"} or grid is None or grid.bits != 8 or not grid.symmetric:
            raise FormatError(f"the entry of {self.owner} has no table in int8, which embeddings are rounded to.")

    @property
    def weight_grid(self) -> Grid:
        """What the table is rounded to."""
        grid = self.grid("weight")
        assert grid is not None
        return grid

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the packed table, its scales and zero points."""
        d_in, d_out = shapes[0]
        return self.weight_grid.stored(d_in, d_out)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return no products: the head is not counted among the projections."""
        return ()

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the packed table, its scales and zero points."""
        return on_disk_shapes(f"{self.owner}.weight", (None, None), self.weight_grid)
