"""Room for hidden states: between two blocks, and what every block reads; in memory or in files."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from basis_sharing.errors import CorpusError
from basis_sharing.run.durable import UNFINISHED, allocate
from basis_sharing.run.machine import Machine

_DISK_SHARE = 0.8


def states_like(shape: torch.Size, dtype: torch.dtype, file: Path, machine: Machine) -> Tensor:
    """Return room for states, of which a few may be needed at a time, in memory or, where it is short, in a file.

    Raises:
        OSError: The disk fails or has no room.
    """
    if machine.holds_states(shape.numel() * dtype.itemsize):
        return torch.empty(shape, dtype=dtype)
    return _in_file(shape, dtype, file)


def _in_file(shape: torch.Size, dtype: torch.dtype, file: Path) -> Tensor:
    """Return the content of a file of that size as a tensor; it is made if it is not there."""
    count = shape.numel()
    if not (file.is_file() and file.stat().st_size == count * dtype.itemsize):
        allocate(file, count * dtype.itemsize)
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)


@dataclass(frozen=True)
class BlockInputs:
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


def make_block_inputs(
    rows: int, row: torch.Size, dtype: torch.dtype, folder: Path, machine: Machine, *, wanted: bool
) -> BlockInputs:
    """Return a tape.

    It is in a file where that is wanted and the disk has room, or where memory is short; a file of that size that is
    there already is taken as it is.

    Args:
        rows: Number of rows.
        row: Shape of a row, ``[windows, length, hidden]``.
        dtype: Its dtype.
        folder: Where the file would be. What an interrupted run has left there goes if its tape is of no use.
        machine: Tells how much memory there is.
        wanted: Whether the file is to be gone on with after an interruption.

    Raises:
        CorpusError: Neither memory nor the disk has room.
        OSError: The disk fails.
    """
    shape = torch.Size((rows, *row))
    needed, file = shape.numel() * dtype.itemsize, folder / f"tape{UNFINISHED}"
    there = file.is_file() and file.stat().st_size == needed
    room = there or needed < _DISK_SHARE * psutil.disk_usage(str(folder)).free
    if machine.holds_inputs(needed) and not (wanted and room):
        return BlockInputs(torch.empty(shape, dtype=dtype), None)
    if not room:
        raise CorpusError(
            f"the gradients need {needed / 2**30:.0f} GiB for block inputs, more than memory or {folder.parent} has: "
            "use fewer windows (--windows), or --no-gradients."
        )
    if not there:
        for leftover in folder.glob(f"*{UNFINISHED}"):
            leftover.unlink()
    return BlockInputs(_in_file(shape, dtype, file), file)
