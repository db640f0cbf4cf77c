# SPDX-License-Identifier: Apache-2.0
"""The format of a compressed checkpoint: the entries in ``config.json``, each with the tensors it stores.

A checkpoint keeps its native architecture. ``quantization_config`` in ``config.json`` lists *entries*, one for each
group of projections. An entry is tagged by its ``kind``; plans store the same entries before they are carried out. This
file is copied into every checkpoint and needs neither torch nor transformers.

On disk, entries of the kind ``factors`` have ``<projection>.weight``, the coefficient matrix of shape ``[d_out,
rank]``, and ``<owner>.basis.weight``, the basis of shape ``[rank, d_in]``, stored once under the first member. A loader
that does not support the format fails at the shape of a weight. In the form ``pivoted``, ``rank`` rows of the basis are
the identity and are not stored: the basis has shape ``[rank, d_in - rank]``, and ``pivots`` marks the ``rank`` of the
``d_in`` inputs they belong to, as the base64 form of ``d_in`` bits, first input in the highest bit of the first byte.

Rows and columns of a pivoted basis are in *input order*: the pivots in ascending order, then the other inputs. Entries
that read one input can have a common order, in which the pivots of each are the first. Their ``order`` lists the nested
sets of pivots, smallest first, in the code of ``pivots``: the input order is the smallest set, then what each larger
one adds, then the other inputs, each in ascending order.

Bases that multiply one input can be stored side by side, in one tensor and under the name of the first; ``rows`` of an
entry says which rows are its own.

``tensors`` of an entry names the tensors that are not stored in the model's dtype, by their names relative to the
projection (``basis.weight``), each with its ``dtype`` and the name of the tensor with its ``scales``. Which dtypes
are possible depends on the kind; ``factors`` has only the dtype of the model.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

QUANT_METHOD = "basis_sharing"
FORMAT_VERSION = 2
FORMS = ("plain", "pivoted")

Shape = tuple[int, int]


class FormatError(ValueError):
    """The checkpoint is inconsistent, or needs a newer version of this code."""


@dataclass(frozen=True)
class Stored:
    """A tensor of an entry.

    Attributes:
        shape: Its shape; sizes may be arrays to compute the costs of many options at once.
        dtype: Name of its dtype; ``"model"``: the model's own.
        buffer: Whether it is a buffer made at loading, which takes memory but is no parameter and not on disk.
        member: Index of the member it belongs to; None: all members share it.
    """

    shape: tuple[Any, ...]
    dtype: str = "model"
    buffer: bool = False
    member: int | None = None


@dataclass(frozen=True)
class Product:
    """A product of a token's features with a matrix.

    Attributes:
        d_in: Number of input features.
        d_out: Number of output features.
        times: How often it is computed per token.
    """

    d_in: Any
    d_out: Any
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """The chosen option for the projections of a scope: one treatment with fixed numbers.

    Attributes:
        kind: Name of the kind, which tags the entry.
        dtypes: Dtypes that its tensors may have besides the model's.
        members: Module paths of the projections; the first one owns the shared tensors.
        loss: Expected rise of the loss in nats per token; None where it is not predicted. Not used for loading.
        tensors: Tensors that are not stored in the model's dtype: ``{name: {"dtype": ..., "scales": ...}}``.
    """

    kind: ClassVar[str] = ""
    dtypes: ClassVar[frozenset[str]] = frozenset()

    members: tuple[str, ...]
    loss: float | None = None
    tensors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members or not all(isinstance(name, str) for name in self.members):
            raise FormatError(f"an entry of kind {self.kind} names no members.")
        repeated = next((name for name in self.members if self.members.count(name) > 1), None)
        if repeated is not None:
            raise FormatError(f"{repeated} is twice in one entry.")
        if self.loss is not None and not isinstance(self.loss, (int, float)):
            raise FormatError(f"the entry of {self.owner} has the loss {self.loss!r}; a number is needed.")
        if not isinstance(self.tensors, Mapping) or not all(isinstance(t, Mapping) for t in self.tensors.values()):
            raise FormatError(f"the entry of {self.owner} has the tensors {self.tensors!r}; mappings are needed.")
        for name, about in self.tensors.items():
            dtype = about.get("dtype", "model")
            if dtype != "model" and dtype not in self.dtypes:
                raise FormatError(
                    f"the entry of {self.owner} has {name} in {dtype}, which kind {self.kind} of this version does not "
                    "know: update basis-sharing."
                )

    @property
    def owner(self) -> str:
        """The first member, under whose name shared tensors are stored."""
        return self.members[0]

    @property
    def label(self) -> str:
        """Name of the option in a few letters, e.g. its rank."""
        return self.kind

    @property
    def title(self) -> str:
        """Name of the option in a few words."""
        return self.label

    def fit(self, shapes: Sequence[Shape]) -> None:  # noqa: B027 - optional
        """Make sure that the entry fits its members.

        Args:
            shapes: ``(d_in, d_out)`` of every member.

        Raises:
            FormatError: The entry does not fit.
        """

    def check_executed(self) -> None:  # noqa: B027 - optional
        """Check that the entry has what only execution adds; a plan does not have it yet.

        Raises:
            FormatError: Something is missing.
        """

    @abstractmethod
    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the tensors of the entry, for members of these shapes."""

    @abstractmethod
    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products that all members need for one token.

        Args:
            shapes: ``(d_in, d_out)`` of every member.
            inputs: Number of different inputs that the members read.
        """

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the tensors on disk by name; None for sizes that the entry does not determine."""
        return {}

    def kept(self, shapes: Sequence[Shape]) -> float:
        """Return the fraction of its members that the option keeps, 0 to 1: rank by highest useful rank."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without fields at their default."""
        data: dict[str, Any] = {"kind": self.kind, "members": list(self.members)}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name != "members" and value != _default(spec):
                data[spec.name] = list(value) if isinstance(value, tuple) else value
        return data


def _default(spec: Any) -> Any:
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default


_ENTRIES: dict[str, type[Entry]] = {}


def register_entry(cls: type[Entry]) -> type[Entry]:
    """Register the class of a kind of entries, and return it; used as a decorator.

    Raises:
        ValueError: Another class has this kind.
    """
    known = _ENTRIES.get(cls.kind)
    if known is not None and f"{known.__module__}.{known.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
        raise ValueError(
            f"two kinds of entries are called {cls.kind!r} ({known.__module__} and {cls.__module__}): rename one."
        )
    _ENTRIES[cls.kind] = cls
    return cls


def entry_class(kind: object) -> type[Entry]:
    """Return the class of a kind; for unknown kinds, the package (if this file is not a copy) is searched first.

    Raises:
        FormatError: The kind is not registered.
    """
    if isinstance(kind, str) and kind not in _ENTRIES:
        for find in getattr(sys.modules.get(__package__ or ""), "KIND_FINDERS", ()):
            find()
    if not isinstance(kind, str) or kind not in _ENTRIES:
        known = ", ".join(sorted(_ENTRIES))
        raise FormatError(
            f"unknown kind of entry {kind!r}, known are {known}: update basis-sharing, or import the package that "
            "defines it."
        )
    return _ENTRIES[kind]


def entry_from(data: object) -> Entry:
    """Return an entry from its JSON form.

    Raises:
        FormatError: It is malformed or of an unknown kind.
    """
    if isinstance(data, Entry):
        return data
    if not isinstance(data, Mapping):
        raise FormatError(f"an entry is {data!r}; a mapping with kind and members is needed.")
    cls = entry_class(data.get("kind"))
    given = {name: value for name, value in data.items() if name != "kind"}
    known = {spec.name for spec in fields(cls)}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise FormatError(f"an entry of kind {cls.kind} has the unknown field {unknown!r}.")
    required = (spec.name for spec in fields(cls) if spec.default is MISSING and spec.default_factory is MISSING)
    missing = next((name for name in required if name not in given), None)
    if missing is not None:
        raise FormatError(f"an entry of kind {cls.kind} has no {missing}.")
    if not isinstance(given["members"], (list, tuple)):
        raise FormatError(f"an entry of kind {cls.kind} has the members {given['members']!r}; a list is needed.")
    return cls(**given)


def entries_from(data: object) -> tuple[Entry, ...]:
    """Return the entries of a plan or a checkpoint.

    Raises:
        FormatError: There are none, one is malformed, or two have a member in common.
    """
    if not isinstance(data, (list, tuple)) or not data:
        raise FormatError("no entries are listed.")
    entries = tuple(map(entry_from, data))
    seen: set[str] = set()
    for entry in entries:
        repeated = next((name for name in entry.members if name in seen), None)
        if repeated is not None:
            raise FormatError(f"{repeated} belongs to two entries.")
        seen.update(entry.members)
    return entries


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

    rank: int
    form: str = "plain"
    pivots: str | None = None
    order: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None
    beside: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """The rank."""
        return str(self.rank)

    @property
    def title(self) -> str:
        """Rank and form."""
        return f"rank {self.rank}" + ("" if self.form == "pivoted" else f" {self.form}")

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

    def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
        """Return the basis, the coefficients and, for pivoted factors, the indices of pivots and other inputs."""
        return factor_tensors(shapes, self.rank, self.form)

    def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
        """Return the products with the basis, one per input, and with the coefficients."""
        return factor_products(shapes, self.rank, self.form, inputs)

    def on_disk(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes of the basis and of the coefficients of every member."""
        weights: dict[str, tuple[int | None, ...]] = {f"{name}.weight": (None, self.rank) for name in self.members}
        stored = self.rank if self.rows is None else self.rows[1]
        return {f"{self.holder}.basis.weight": (stored, None), **weights}

    def kept(self, shapes: Sequence[Shape]) -> float:
        """Return the rank as a fraction of the highest useful rank of the group."""
        return self.rank / most_rank(shapes)


def most_rank(shapes: Sequence[Shape]) -> int:
    """Return the highest useful rank of a group of projections."""
    return min(shapes[0][0], sum(d_out for _, d_out in shapes))


def factor_tensors(shapes: Sequence[Shape], rank: Any, form: str) -> tuple[Stored, ...]:
    """Return the tensors of factors: k (d_in + sum of d_out) numbers for rank k, minus k^2 in the pivoted form.

    Args:
        shapes: ``(d_in, d_out)`` of every member.
        rank: Number of basis vectors, or an array of such numbers.
        form: Form of the factors.
    """
    d_in = shapes[0][0]
    pivoted = form == "pivoted"
    coefficients = tuple(Stored((d_out, rank), member=place) for place, (_, d_out) in enumerate(shapes))
    indices = (Stored((d_in,), "int32", buffer=True),) if pivoted else ()
    return (Stored((rank, d_in - rank if pivoted else d_in)), *coefficients, *indices)


def factor_products(shapes: Sequence[Shape], rank: Any, form: str, inputs: int) -> tuple[Product, ...]:
    """Return the products of factors for one token; members with the same input use one product with the basis.

    Args:
        shapes: ``(d_in, d_out)`` of every member.
        rank: Number of basis vectors, or an array of such numbers.
        form: Form of the factors.
        inputs: Number of different inputs that the members read.
    """
    d_in = shapes[0][0]
    read = d_in - rank if form == "pivoted" else d_in
    return (Product(read, rank, inputs), *(Product(rank, d_out) for _, d_out in shapes))
