"""Reading and writing the outcome of one entry, for resuming an interrupted run.

The file stores tensors in the layout of the compressed model's modules, so that a model can use them memory-mapped: the
system can reclaim their memory.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from basis_sharing.run.durable import write_whole
from basis_sharing.runtime.format_basis_sharing import entry_from
from basis_sharing.treatments.base import Outcome

_NUMBERS = ("loss", "relative_loss", "ridge")


def write_outcome(outcome: Outcome, path: Path) -> None:
    """Write the outcome of an entry to a file.

    Raises:
        OSError: The disk is full or fails.
    """
    tensors = {name: tensor.contiguous() for name, tensor in outcome.tensors.items()}
    about = {
        "entry": outcome.entry.to_dict(),
        "notes": outcome.notes,
        **{name: getattr(outcome, name) for name in _NUMBERS},
    }
    write_whole(path, lambda partial: save_file(tensors, partial, {"outcome": json.dumps(about)}))


def read_outcome(path: Path) -> Outcome | None:
    """Return the outcome in a file, or None if the file does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["outcome"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    numbers = {name: about[name] for name in _NUMBERS}
    return Outcome(entry_from(about["entry"]), tensors, notes=tuple(about["notes"]), **numbers)
