"""Migration of results of earlier versions to the current schemas."""

from typing import Any

from basis_sharing.plans.migrations import entry_of_group

_OF_A_GROUP = ("relative_loss", "ridge")


def compression_from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a compression of schema version 1 in version 2: groups become entries, ``propagation`` ``repair``."""
    renamed = {"propagation": "repair"}
    rest = {renamed.get(name, name): value for name, value in data.items() if name != "groups"}
    entries = [
        {
            "entry": entry_of_group({name: value for name, value in group.items() if name not in _OF_A_GROUP}),
            **{name: group[name] for name in _OF_A_GROUP},
        }
        for group in data["groups"]
    ]
    return {**rest, "schema_version": 2, "entries": entries}
