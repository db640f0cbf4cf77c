"""The result of an inspection: the parts of a dense model."""

from typing import Any, Literal

from pydantic import field_serializer, field_validator

from basis_sharing.models.sizes import RoleRow, starting_point
from basis_sharing.results.base import Frozen, Result

_RATIOS = (0.2, 0.5)


class ExportSize(Frozen):
    """The size of a model in one form of an export.

    Attributes:
        export: Name of the export.
        weights: The form of its weights.
        bytes: Bytes of the weights of the whole model, nothing removed.
        removed: Fraction of the parameters of the compressible parts that has to be removed to fit into the memory
            that was given, 0 if it fits; above 1 nothing helps. None if no memory was given.
    """

    export: str
    weights: str
    bytes: int
    removed: float | None


class Inspection(Result):
    """The parts of a model, and the roles whose compression saves most.

    Attributes:
        model: The model as it was given.
        family: Name of its family, from :func:`~basis_sharing.models.decoder.describe`.
        start_with: Compressible roles that hold the most memory.
        rows: Every role, the embeddings, the output head and the rest, with their parameters and bytes. In JSON each
            row also has the bytes saved by removing 20 % and 50 % of its parameters.
        exports: What exports to runtimes need, if it was asked for.
        memory: Bytes for weights that were given; None: none were.
    """

    kind: Literal["inspection"] = "inspection"
    model: str
    family: str
    start_with: tuple[str, ...]
    rows: tuple[RoleRow, ...]
    exports: tuple[ExportSize, ...] = ()
    memory: int | None = None

    @classmethod
    def of(cls, model: str, family: str, rows: tuple[RoleRow, ...]) -> "Inspection":
        """Return the inspection of a model with these rows."""
        start = tuple(row.name for row in starting_point(rows))
        return cls(model=model, family=family, start_with=start, rows=rows)

    @field_validator("rows", mode="before")
    @classmethod
    def _without_savings(cls, rows: Any) -> Any:
        """Drop the saved bytes of a file, which are computed from the other fields."""
        return [{k: v for k, v in row.items() if k != "saved_bytes"} if isinstance(row, dict) else row for row in rows]

    @field_serializer("rows", when_used="json")
    def _with_savings(self, rows: tuple[RoleRow, ...]) -> list[dict[str, Any]]:
        return [{**vars(row), "saved_bytes": {f"{r:g}": row.saved_bytes(r) for r in _RATIOS}} for row in rows]
