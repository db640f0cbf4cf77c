# SPDX-License-Identifier: Apache-2.0
"""The entries of a ``quantization_config`` of any format version.

Version 1 had a list of ``groups``, all of them factors, instead of the entries; they are read as entries. This file is
copied into every checkpoint and needs neither torch nor transformers.
"""

from collections.abc import Mapping
from typing import Any

from .entries_basis_sharing import Factors
from .expert_entries_basis_sharing import Narrow  # noqa: F401 - registers the kinds of experts
from .format_basis_sharing import FORMAT_VERSION, Entry, FormatError, entries_from


def entries_of_config(config: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Return the entries of a ``quantization_config`` of any version.

    Raises:
        FormatError: The version is newer than this code, or an entry is malformed.
    """
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"format_version is {version!r} in config.json; a positive integer is needed.")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"this checkpoint has format version {version}, newer than the version {FORMAT_VERSION} known here: update "
            "basis-sharing."
        )
    data = config.get("entries") if config.get("groups") is None else _of_groups(config["groups"])
    try:
        entries = entries_from(data)
        for entry in entries:
            entry.check_executed()
        return entries
    except FormatError as error:
        raise FormatError(f"quantization_config in config.json: {error}") from None


def _of_groups(groups: object) -> list[dict[str, Any]]:
    """Return the groups of format version 1 as entries."""
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        raise FormatError("quantization_config in config.json lists no groups.")
    return [
        {"kind": Factors.kind, **{name: value for name, value in group.items() if name != "dtype"}} for group in groups
    ]
