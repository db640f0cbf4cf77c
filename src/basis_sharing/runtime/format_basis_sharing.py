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
projection (``basis.weight``), each with its ``dtype``. Which dtypes are possible depends on the kind; ``factors`` and
``bits`` have ``int2`` to ``int8`` (symmetric) and ``uint2`` to ``uint8`` (with zero points), with the ``group`` of
inputs that have a scale in common. Such a matrix of shape ``[d_out, d_in]`` is stored packed under its own name, with
``scales`` and ``zero_points`` beside it, in the layout of ``rounded_basis_sharing.py``; a loader that does not support
it fails at the shape.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

QUANT_METHOD = "basis_sharing"
FORMAT_VERSION = 2

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
        parameters: Number of parameters of the model that it holds; None: that of its elements.
    """

    shape: tuple[Any, ...]
    dtype: str = "model"
    buffer: bool = False
    member: int | None = None
    parameters: Any = None


@dataclass(frozen=True)
class Product:
    """A product of a token's features with a matrix.

    Attributes:
        d_in: Number of input features.
        d_out: Number of output features.
        times: How often it is computed per token.
        grid: What the matrix is rounded to; None: it is not.
    """

    d_in: Any
    d_out: Any
    times: int = 1
    grid: "Grid | None" = None


@dataclass(frozen=True)
class Grid:
    """Numbers that a matrix is rounded to: the multiples of a scale that ``bits`` bits tell apart.

    Attributes:
        bits: Bits per number, 2 to 8.
        group: Number of consecutive inputs of one output that have a scale (and zero point) in common; the last group
            may be smaller.
        symmetric: Whether the multiples are -2^(bits-1) to 2^(bits-1) - 1; else a zero point says which are.
    """

    bits: int
    group: int
    symmetric: bool = False

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Grid | None":
        """Return the grid of a tensor's description in an entry; None: it is not rounded to one."""
        dtype, group = about.get("dtype", "model"), about.get("group")
        if dtype not in GRID_DTYPES or group is None:
            return None
        if not isinstance(group, int) or isinstance(group, bool) or group < 1:
            raise FormatError(f"a tensor in {dtype} has groups of {group!r} inputs; a positive integer is needed.")
        symmetric = dtype.startswith("int")
        return cls(int(dtype.removeprefix("u").removeprefix("int")), group, symmetric)

    @property
    def about(self) -> dict[str, Any]:
        """The description of a tensor in an entry."""
        return {"dtype": f"{'' if self.symmetric else 'u'}int{self.bits}", "group": self.group}

    def __str__(self) -> str:
        return f"{'' if self.symmetric else 'u'}int{self.bits}/{self.group}"

    @property
    def planes(self) -> tuple[int, ...]:
        """Widths of the parts in which numbers are packed, powers of two, lowest bits last: 3 bits are 2 and 1."""
        return tuple(width for width in (8, 4, 2, 1) if self.bits & width)

    def words(self, count: Any) -> Any:
        """Return how many 32-bit words a row of ``count`` packed numbers takes."""
        total: Any = 0
        for width in self.planes:
            total = total + -(-count * width // 32)
        return total

    def groups(self, d_in: Any) -> Any:
        """Return the number of groups of so many inputs."""
        return -(-d_in // self.group)

    def stored(self, d_in: Any, d_out: Any, member: int | None = None) -> tuple[Stored, ...]:
        """Return the tensors of a rounded matrix: its packed numbers, their scales and zero points."""
        groups = self.groups(d_in)
        zero_points = () if self.symmetric else (Stored((self.words(d_out), groups), "int32", False, member, 0),)
        packed = Stored((d_out, self.words(d_in)), "int32", False, member, d_out * d_in)
        return (packed, Stored((d_out, groups), "model", False, member, 0), *zero_points)


GRID_DTYPES = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9))
"""Names of the dtypes of rounded matrices."""


def matrix_tensors(d_in: Any, d_out: Any, grid: Grid | None = None, member: int | None = None) -> tuple[Stored, ...]:
    """Return the tensors of a matrix, rounded or not."""
    return (Stored((d_out, d_in), member=member),) if grid is None else grid.stored(d_in, d_out, member)


def grid_tensors(name: str, grid: Grid) -> tuple[str, ...]:
    """Return the names on disk of the tensors of a rounded matrix ``<path>.weight``: packed, it keeps its name."""
    path = name.rpartition(".")[0]
    return (name, f"{path}.scales", *(() if grid.symmetric else (f"{path}.zero_points",)))


def on_disk_shapes(name: str, shape: tuple[int | None, ...], grid: Grid | None) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of the tensors of a matrix on disk by name, rounded or not."""
    if grid is None:
        return {name: shape}
    d_out, d_in = shape
    words, groups = (None, None) if d_in is None else (grid.words(d_in), grid.groups(d_in))
    zero_points = (None if d_out is None else grid.words(d_out), groups)
    return dict(zip(grid_tensors(name, grid), ((d_out, words), (d_out, groups), zero_points), strict=False))


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """The chosen option for the projections of a scope: one treatment with fixed numbers.

    Attributes:
        kind: Name of the kind, which tags the entry.
        dtypes: Dtypes that its tensors may have besides the model's.
        members: Module paths of the projections; the first one owns the shared tensors.
        loss: Expected rise of the loss in nats per token; None where it is not predicted. Not used for loading.
        tensors: Tensors that are not stored in the model's dtype: ``{name: {"dtype": ..., ...}}``.
    """

    kind: ClassVar[str] = ""
    dtypes: ClassVar[frozenset[str]] = frozenset()

    members: tuple[str, ...]
    loss: float | None = None
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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
            Grid.of(about)

    def grid(self, tensor: str) -> Grid | None:
        """Return what a tensor, named relative to the projection, is rounded to; None: it is not."""
        return Grid.of(self.tensors.get(tensor, {}))

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
