"""The table of an inspection: the parts of a model, and the roles to start with."""

import math
from collections.abc import Sequence

from basis_sharing.models.sizes import RoleRow, starting_point
from basis_sharing.reports.table import Column, Table
from basis_sharing.reports.tables.cells import percent, size
from basis_sharing.results.inspection import ExportSize

SHOWN_RATIOS = (0.2, 0.5)


def inspection_table(model: str, family: str, rows: Sequence[RoleRow]) -> Table:
    """Return the memory of the parts of a model, which of them can be compressed, and the bytes that saves."""
    ratios = " / ".join(percent(ratio, 0) for ratio in SHOWN_RATIOS)
    parameters, memory = sum(row.parameters for row in rows), sum(row.bytes for row in rows)
    return Table(
        f"{model}: family {family}",
        (
            Column("role", "left"),
            Column("shape (in x out)", "left"),
            *map(Column, ("count", "parameters", "memory", "share")),
            Column(f"compressible; removing {ratios} saves", "left"),
        ),
        tuple(
            (
                row.name,
                ", ".join(" x ".join(map(str, shape)) for shape in row.shapes),
                str(row.count),
                f"{row.parameters:,}",
                size(row.bytes),
                percent(row.share),
                f"yes: {_saved([row])}" if row.compressible else f"no: {row.reason or 'not a projection'}",
            )
            for row in rows
        ),
        (advice(rows),),
        footer=("total", "", "", f"{parameters:,}", size(memory), "100.0 %", _saved(rows)),
    )


def edge_table(model: str, exports: Sequence[ExportSize], memory: int | None) -> Table:
    """Return the bytes of a model's weights in every export, and what has to be removed to fit into a memory."""
    rows = tuple((each.export, each.weights, size(each.bytes), _fits(each.removed)) for each in exports)
    names = (Column("runtime", "left"), Column("weights", "left"), Column("nothing removed", "right"))
    if memory is None:
        return Table(f"{model} in other runtimes", names, tuple(row[:3] for row in rows), (_NEXT,))
    notes = (
        f"Of the weights alone: the runtime itself, the cache of keys and values and the graph come on top. {_NEXT}",
        "What a ratio costs in quality, basis-sharing plan says before anything is compressed.",
    )
    title = f"{model} in {size(memory)} for weights"
    return Table(title, (*names, Column(f"to fit into {size(memory)}", "left")), rows, notes)


_NEXT = "basis-sharing compress --ratio, then export --to RUNTIME --weights WEIGHTS."
_MOST = 0.8  # of the compressible parameters; beyond, nothing is left of a model


def _fits(removed: float | None) -> str:
    if not removed:
        return "fits as it is"
    return f"--ratio {math.ceil(100 * removed) / 100:.2f}" if removed <= _MOST else "does not fit"


def advice(rows: Sequence[RoleRow]) -> str:
    """Return one sentence that names the roles to start with."""
    start = starting_point(rows)
    names = [row.name for row in start]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    half, total = sum(row.saved_bytes(0.5) for row in start), sum(row.bytes for row in rows)
    sentence = (
        f"Start with {listed}: {percent(sum(row.share for row in start))} of the memory; removing half of that "
        f"saves {size(half)} of the model's {size(total)}"
    )
    largest = max(rows, key=lambda row: row.bytes)
    if largest.compressible:
        return f"{sentence}."
    return f"{sentence} (the largest part, {largest.name}, {percent(largest.share)}, stays as it is)."


def _saved(rows: Sequence[RoleRow]) -> str:
    return " / ".join(size(sum(row.saved_bytes(ratio) for row in rows)) for ratio in SHOWN_RATIOS)
