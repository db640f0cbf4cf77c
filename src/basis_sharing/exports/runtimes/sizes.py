"""The bytes that exports need for the weights of a model, before anything is exported."""

from collections.abc import Iterable

from basis_sharing.exports.base import Stored
from basis_sharing.models.sizes import EMBEDDINGS, HEAD, RoleRow
from basis_sharing.results.inspection import ExportSize


def export_sizes(
    rows: Iterable[RoleRow], forms: Iterable[tuple[str, str, Stored]], memory: int | None
) -> tuple[ExportSize, ...]:
    """Return the bytes of a model's weights in every form, and what has to be removed to fit into a memory.

    Args:
        rows: The parts of the model.
        forms: Name of an export, form of its weights, and what it stores.
        memory: Bytes for weights; None: nothing has to fit.
    """
    rows = tuple(rows)
    compressible = sum(row.parameters for row in rows if row.compressible)
    embeddings = sum(row.parameters for row in rows if row.name == EMBEDDINGS)
    matrices = sum(row.parameters for row in rows if not row.compressible and row.name != EMBEDDINGS and _large(row))
    small = sum(row.parameters for row in rows if not row.compressible and not _large(row))
    tied = any(row.name == HEAD and not row.parameters for row in rows)
    found = []
    for export, weights, stored in forms:
        kept = matrices * stored.matrix + embeddings * (stored.embeddings + tied * stored.tied_head) + 4 * small
        size = round(kept + compressible * stored.matrix)
        removed = None
        if memory is not None:
            removed = max(0.0, (size - memory) / (compressible * stored.matrix))
        found.append(ExportSize(export=export, weights=weights, bytes=size, removed=removed))
    return tuple(found)


def _large(row: RoleRow) -> bool:
    return any(len(shape) > 1 for shape in row.shapes)
