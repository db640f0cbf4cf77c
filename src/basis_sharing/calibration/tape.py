"""Room for what every block reads, in memory or on the disk."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from basis_sharing.durable import UNFINISHED, allocate
from basis_sharing.errors import CorpusError

_MEMORY_SHARE = 0.3
_DISK_SHARE = 0.8


@dataclass(frozen=True)
class Tape:
    """Hidden states between blocks.

    Attributes:
        rows: What each block reads and what the last one hands on, shape ``[blocks + 1, windows, length, hidden]``.
        file: The file they are in; None: in memory.
    """

    rows: Tensor
    file: Path | None

    def read(self, row: int, window: int, device: torch.device) -> Tensor:
        """Return the states of one window, shape ``[1, length, hidden]``."""
        return self.rows[row, window : window + 1].to(device)


def make_tape(rows: int, hidden: Tensor, folder: Path, *, wanted: bool) -> Tape:
    """Return a tape of some rows like ``hidden``.

    It is in a file where that is wanted and the disk has room, or where memory is short; a file of that size that is
    there already is taken as it is.

    Args:
        rows: Number of rows.
        hidden: States of the shape and dtype of a row.
        folder: Where the file would be. What an interrupted run has left there goes if its tape is of no use.
        wanted: Whether the file is to be gone on with after an interruption.

    Raises:
        CorpusError: Neither memory nor the disk has room.
        OSError: The disk fails.
    """
    shape, count = (rows, *hidden.shape), rows * hidden.numel()
    needed, file = count * hidden.element_size(), folder / f"tape{UNFINISHED}"
    there = file.is_file() and file.stat().st_size == needed
    room = there or needed < _DISK_SHARE * psutil.disk_usage(str(folder)).free
    fits = needed <= _MEMORY_SHARE * psutil.virtual_memory().available
    if fits and not (wanted and room):
        return Tape(torch.empty(shape, dtype=hidden.dtype), None)
    if not room:
        raise CorpusError(
            f"the gradients need {needed / 2**30:.0f} GiB for block inputs, more than memory or {folder.parent} has: "
            "use fewer windows (--windows), or --no-gradients."
        )
    if not there:
        for leftover in folder.glob(f"*{UNFINISHED}"):
            leftover.unlink()
        allocate(file, needed)
    states = torch.from_file(str(file), shared=True, size=count, dtype=hidden.dtype)
    return Tape(states.view(shape), file)
