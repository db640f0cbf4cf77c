"""The layout of a compressed folder: the group and rank of every projection, and the bytes of every part."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from basis_sharing.costs.base import shapes_of
from basis_sharing.costs.bytes import size_of
from basis_sharing.errors import ResultError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import ROLES, Compressible
from basis_sharing.models.sizes import role_table
from basis_sharing.models.source import load_skeleton, resolve
from basis_sharing.results.compression import CompressionResult

EMBEDDINGS, REST = "embeddings and head", "everything else"


@dataclass(frozen=True)
class Cell:
    """One projection of the compressed model.

    Attributes:
        projection: The projection.
        group: Index of its group in the result; None: it stayed dense.
        label: Name of its option in a few letters, e.g. its rank; None: it stayed dense.
        kept: Kept fraction, e.g. the rank divided by the highest useful rank; 1 if it stayed dense.
    """

    projection: Compressible
    group: int | None
    label: str | None
    kept: float


@dataclass(frozen=True)
class Layout:
    """The projections and the sizes of the parts of a compressed model.

    Attributes:
        layers: Number of decoder blocks.
        roles: Its roles, in the order in which they act.
        cells: Every compressible projection.
        before: Bytes in memory of every part of the original: its roles, embeddings and head, everything else.
        after: The same for the compressed model. Shared tensors are divided equally among their members.
    """

    layers: int
    roles: tuple[str, ...]
    cells: tuple[Cell, ...]
    before: dict[str, int]
    after: dict[str, int]


def layout_of(folder: Path, result: CompressionResult) -> Layout:
    """Return the layout of a compressed folder; only its configuration is read, no weights.

    Raises:
        ModelError: The folder's configuration cannot be read.
        ResultError: The result is that of another model.
    """
    skeleton = load_skeleton(resolve(folder))
    decoder = describe(skeleton)
    projections = {projection.name: projection for projection in decoder.parts}
    group_of: dict[str, int] = {}
    kept: list[float] = []
    saved: Counter[str] = Counter()  # bytes
    itemsize = skeleton.dtype.itemsize
    for index, group in enumerate(result.entries):
        unknown = next((name for name in group.members if name not in projections), None)
        if unknown is not None:
            raise ResultError(
                f"the results in {folder} speak of {unknown}, which its model does not have: the folder mixes two "
                "models; compress again."
            )
        members = [projections[name] for name in group.members]
        kept.append(group.entry.kept(shapes_of(members)))
        stored = [tensor for tensor in group.entry.stored(shapes_of(members)) if not tensor.buffer]
        shared = sum(size_of(tensor, itemsize) for tensor in stored if tensor.member is None)
        for place, member in enumerate(members):
            group_of[member.name] = index
            own = sum(size_of(tensor, itemsize) for tensor in stored if tensor.member == place)
            part = shared // len(members) + (place < shared % len(members))
            saved[member.role] += member.d_in * member.d_out * itemsize - own - part
    roles = tuple(role for role in ROLES if any(p.role == role for p in decoder.parts))
    before = dict.fromkeys([*roles, EMBEDDINGS, REST], 0)
    for row in role_table(skeleton, decoder):
        part_name = row.name if row.name in roles else EMBEDDINGS if row.name in _OUTER else REST
        before[part_name] += row.bytes
    after = {part_name: count - saved[part_name] for part_name, count in before.items()}
    after[REST] += result.after.bytes_in_memory - sum(after.values())  # the pivots of pivoted bases
    cells = tuple(
        Cell(
            p,
            group_of.get(p.name),
            result.entries[group_of[p.name]].entry.label if p.name in group_of else None,
            kept[group_of[p.name]] if p.name in group_of else 1.0,
        )
        for p in decoder.parts
    )
    return Layout(len(decoder.blocks), roles, cells, before, after)


_OUTER = ("embeddings", "output head")
