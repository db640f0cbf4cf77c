"""The entries of the kind ``toy``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from basis_sharing.runtime.format_basis_sharing import Entry, FormatError, Product, Shape, Stored, register_entry

TENSORS = {"weight": {"dtype": "int8", "scales": "scales"}, "scales": {"dtype": "float32"}}


@register_entry
@dataclass(frozen=True, kw_only=True)
class Toy(Entry):
    """One projection that reads some of its inputs, in eight bits.

    Attributes:
        count: How many inputs it reads.
        inputs: Code of them, once they are known.
    """

    kind: ClassVar[str] = "toy"
    dtypes: ClassVar[frozenset[str]] = frozenset({"int8", "float32"})

    count: int
    inputs: str | None = None

    @property
    def label(self) -> str:
        return f"{self.count}*"

    @property
    def title(self) -> str:
        return f"{self.count} inputs in 8 bits"

    def fit(self, shapes: Sequence[Shape]) -> None:
        if len(shapes) > 1:
            raise FormatError(f"the entry of {self.owner} has {len(shapes)} members; a toy has one.")
        if not 1 <= self.count < shapes[0][0]:
            raise FormatError(f"the entry of {self.owner} reads {self.count} inputs of {shapes[0][0]}.")

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        ((_, d_out),) = shapes
        codes, scales = Stored((d_out, self.count), "int8", member=0), Stored((d_out,), "float32", member=0)
        return codes, scales, Stored((self.count,), "int32", buffer=True)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        return (Product(self.count, shapes[0][1]),)

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        return {f"{self.owner}.weight": (None, self.count), f"{self.owner}.scales": (None,)}

    def kept(self, shapes: Sequence[Shape]) -> float:
        return self.count / shapes[0][0]
