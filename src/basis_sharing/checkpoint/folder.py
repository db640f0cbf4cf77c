"""Check a compressed folder against its own configuration before anything is loaded."""

import json
from pathlib import Path
from typing import Any

from basis_sharing.errors import CheckpointError
from basis_sharing.models.weight_files import read_header, weight_files
from basis_sharing.runtime.modeling_basis_sharing import FormatError, check_format


def check_folder(folder: Path) -> None:
    """Make sure that a compressed folder holds the factors its ``config.json`` promises.

    Only the headers of the weight files are read.

    Raises:
        CheckpointError: The format is newer than this version, a factor is missing, or a rank disagrees.
        ModelError: A weight file is missing or damaged.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization: dict[str, Any] = config["quantization_config"]
    try:
        check_format(quantization.get("format_version"), quantization.get("groups"))
    except FormatError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    headers = [read_header(file) for file in weight_files(folder)]
    shapes: dict[str, list[int]] = {name: entry["shape"] for header in headers for name, entry in header.items()}
    for group in quantization["groups"]:
        rank, members = group["rank"], group["members"]
        expected = {f"{members[0]}.basis.weight": 0} | {f"{name}.weight": 1 for name in members}
        for tensor, axis in expected.items():
            if tensor not in shapes:
                raise CheckpointError(f"{folder}: the weight files lack {tensor}, which config.json promises.")
            if shapes[tensor][axis] != rank:
                raise CheckpointError(
                    f"{folder}: config.json gives {members[0]} rank {rank}, but {tensor} has shape "
                    f"{shapes[tensor]}: the folder mixes two checkpoints; compress again."
                )
