"""Migration of plans from earlier versions of the schema."""

from typing import Any, Final

PLAN_VERSION: Final = 2


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON form of a plan, converted to the current version.

    Version 1 had ``groups``, all of them factors, instead of ``entries``.

    Raises:
        ValueError: The version is not a positive integer or is newer than the current one, or a plan of version 1
            has no list of groups.
    """
    version = data.get("version", 1 if "groups" in data else PLAN_VERSION)
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"its version is {version!r}; a positive integer is needed.")
    if version > PLAN_VERSION:
        raise ValueError(
            f"it has version {version}, and this version of basis-sharing reads up to {PLAN_VERSION}: update "
            "basis-sharing."
        )
    if version == 1:
        groups = data.get("groups")
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise ValueError("a plan of version 1 lists groups.")
        rest = {name: value for name, value in data.items() if name != "groups"}
        return {**rest, "version": PLAN_VERSION, "entries": [entry_of_group(group) for group in groups]}
    return data


def entry_of_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON form of the entry for a group of version 1."""
    return {"kind": "factors", **group}
