"""Checks of a compressed folder against its own configuration, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

from basis_sharing.checkpoint.originals import names_in_memory
from basis_sharing.errors import CheckpointError, ModelError
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.source import ModelSource, load_config, load_skeleton, resolve
from basis_sharing.models.weight_files import read_header, weight_files
from basis_sharing.runtime.config_basis_sharing import entries_of_config
from basis_sharing.runtime.format_basis_sharing import Entry, FormatError


def compressed_source(folder: str | Path, remedy: str) -> tuple[ModelSource, Path]:
    """Check a compressed folder, and return its source and path.

    Args:
        folder: The folder.
        remedy: End of the error message if the folder is not a compressed one: what to do.

    Raises:
        ModelError: It is not the folder of a compressed model.
        CheckpointError: The folder is inconsistent or too new.
    """
    source = resolve(folder)
    if source.kind != "folder" or source.path is None or not is_compressed(load_config(source).to_dict()):
        raise ModelError(f"{folder} is no folder of a model compressed by basis-sharing: {remedy}.")
    check_folder(source.path)
    return source, source.path


def entries_in(folder: Path) -> tuple[Entry, ...]:
    """Return the entries of a compressed folder.

    Raises:
        CheckpointError: The format is newer than this version, or an entry is malformed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization: dict[str, Any] = config["quantization_config"]
    try:
        return entries_of_config(quantization)
    except FormatError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def check_folder(folder: Path) -> None:
    """Make sure that a compressed folder holds the tensors that its ``config.json`` declares.

    Only the headers of the weight files are read.

    Raises:
        CheckpointError: The format is newer than this version, a tensor is missing, or has another shape.
        ModelError: A weight file is missing or damaged.
    """
    entries = entries_in(folder)
    headers = [read_header(file) for file in weight_files(folder)]
    shapes: dict[str, list[int]] = {name: about["shape"] for header in headers for name, about in header.items()}
    if not all(tensor in shapes for entry in entries for tensor in entry.on_disk()):
        shapes |= _renamed(folder, shapes)
    for entry in entries:
        for tensor, expected in entry.on_disk().items():
            if tensor not in shapes:
                raise CheckpointError(f"{folder}: the weight files lack {tensor}, which config.json promises.")
            shape = shapes[tensor]
            if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
                raise CheckpointError(
                    f"{folder}: config.json gives {entry.owner} {entry.title}, but {tensor} has shape {shape}: the "
                    "folder mixes two checkpoints; compress again."
                )


def _renamed(folder: Path, shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the shapes of tensors by the names in memory, where they differ from those on disk (in some families)."""
    names = names_in_memory(load_skeleton(resolve(folder)), shapes)
    return {name: shapes[on_disk] for on_disk, name in names.items()}
