"""The base classes of all results: their kind, schema version, reading and writing."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from basis_sharing.errors import ResultError


class Frozen(BaseModel):
    """Immutable data without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(Frozen):
    """A result that is stored as JSON; subclasses define ``kind`` and the version of their schema.

    Attributes:
        kind: Kind of the result, e.g. ``"comparison"``.
        schema_version: Version of the schema of this kind.
    """

    SCHEMA_VERSION: ClassVar[int] = 1

    kind: str
    schema_version: int = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the result of this kind in a file.

        Raises:
            ResultError: The file cannot be read, is of another kind, damaged, or newer than this version.
        """
        data = _json(path)
        kind = cls.model_fields["kind"].default
        stored = data.get("kind", "compression")  # files of 0.1.0 have no kind and are results of compressions
        if stored != kind:
            raise ResultError(f"{path} holds the results of a {stored}, not of a {kind}: give another file.")
        version = data.get("schema_version")
        if isinstance(version, int) and version > cls.SCHEMA_VERSION:
            raise ResultError(
                f"{path} has schema version {version}, and this version of basis-sharing reads up to "
                f"{cls.SCHEMA_VERSION}: update basis-sharing."
            )
        try:
            return cls.model_validate(cls.migrated(data))
        except KeyError as error:
            raise ResultError(f"{path} is damaged (it lacks {error}): make it again.") from None
        except (AttributeError, TypeError):  # of a migration, which meets values of another type
            raise ResultError(f"{path} is damaged (a value has another type than it should): make it again.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ResultError(f"{path} is damaged ({where}: {first['msg'].lower()}): make it again.") from None

    @classmethod
    def migrated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data of an earlier schema version in the current one."""
        return data

    def write(self, path: Path) -> None:
        """Write the result as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def kind_of(path: Path) -> str:
    """Return the kind of result a file holds.

    Raises:
        ResultError: The file cannot be read, or holds no result.
    """
    return str(_json(path).get("kind", "compression"))


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"the results {path} cannot be read ({error.strerror}): check the path.") from None
    except ValueError:
        raise ResultError(f"{path} is not valid JSON: make it again.") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ResultError(f"{path} holds no results of basis-sharing: give a file that one of its verbs wrote.")
    return data
