"""What a model consists of, before it is compressed."""

from typing import Any, Literal

from pydantic import field_serializer, field_validator

from basis_sharing.models.sizes import RoleRow, starting_point
from basis_sharing.results.base import Result

_RATIOS = (0.2, 0.5)


class Inspection(Result):
    """What a model consists of, and where compressing it saves most.

    Attributes:
        model: The model as it was given.
        family: Name of its family, as :func:`~basis_sharing.models.decoder.describe` finds it.
        start_with: Roles that hold the most memory and can be compressed.
        rows: Every role, the embeddings, the output head and the rest, with their parameters and bytes. In JSON each
            one also says how many bytes removing 20 % and 50 % of its parameters saves.
    """

    kind: Literal["inspection"] = "inspection"
    model: str
    family: str
    start_with: tuple[str, ...]
    rows: tuple[RoleRow, ...]

    @classmethod
    def of(cls, model: str, family: str, rows: tuple[RoleRow, ...]) -> "Inspection":
        """Return the inspection of a model whose rows are known."""
        start = tuple(row.name for row in starting_point(rows))
        return cls(model=model, family=family, start_with=start, rows=rows)

    @field_validator("rows", mode="before")
    @classmethod
    def _without_savings(cls, rows: Any) -> Any:
        """Leave out what is computed from the other fields when a file is read."""
        return [{k: v for k, v in row.items() if k != "saved_bytes"} if isinstance(row, dict) else row for row in rows]

    @field_serializer("rows", when_used="json")
    def _with_savings(self, rows: tuple[RoleRow, ...]) -> list[dict[str, Any]]:
        return [{**vars(row), "saved_bytes": {f"{r:g}": row.saved_bytes(r) for r in _RATIOS}} for row in rows]
