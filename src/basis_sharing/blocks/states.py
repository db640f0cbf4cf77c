"""Buffers for hidden states, of one block or of all blocks, in memory or in memory-mapped files."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from basis_sharing.errors import CorpusError
from basis_sharing.run.durable import UNFINISHED, allocate
from basis_sharing.run.machine import Machine
from basis_sharing.run.stages import POSITIONS

_DISK_SHARE = 0.8


@dataclass(frozen=True)
class StatesShape:
    """The shape of the states between two blocks.

    Attributes:
        window: Shape of the states of one window: ``[1, length, hidden]`` for most models, ``[streams, 1, length,
            hidden]`` where a model has several residual streams.
        tokens: Its dimension whose size is the length.
        length: Tokens per window; a model that puts a prompt of its own in front has more states than tokens.
        windows: Number of windows.
    """

    window: torch.Size
    tokens: int
    length: int
    windows: int

    @property
    def all(self) -> torch.Size:
        """The shape of the states of all windows, ``[windows, *window]``."""
        return torch.Size((self.windows, *self.window))

    def head_parts(self) -> list[tuple[int, int, int]]:
        """Return the parts of a window whose logits are in memory at a time, as ``(start, states, predicted)``.

        A part begins at position ``start``, has so many states, and its first ``predicted`` logits predict the tokens
        of the window from ``start + 1`` on.
        """
        states, last = self.window[self.tokens], self.length - 1
        if states != self.length:
            return [(0, states, last)]  # the model removes its prompt itself
        starts = range(0, last, POSITIONS)
        return [(start, min(POSITIONS, last - start), min(POSITIONS, last - start)) for start in starts]


def states_like(shape: torch.Size, dtype: torch.dtype, file: Path, machine: Machine) -> Tensor:
    """Return an uninitialized buffer for the states between two blocks, in memory or, if memory is short, in ``file``.

    Raises:
        OSError: The disk is full or fails.
    """
    if machine.holds_states(shape.numel() * dtype.itemsize):
        return torch.empty(shape, dtype=dtype)
    return _in_file(shape, dtype, file)


def _in_file(shape: torch.Size, dtype: torch.dtype, file: Path) -> Tensor:
    """Return the content of a file as a tensor; the file is created if it is missing or has another size."""
    count = shape.numel()
    if not (file.is_file() and file.stat().st_size == count * dtype.itemsize):
        allocate(file, count * dtype.itemsize)
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of all blocks, and the output of the last one.

    Attributes:
        rows: The states, shape ``[blocks + 1, windows, *window]``; the last row is the output of the last block.
        file: The file that holds them; None: they are in memory.
    """

    rows: Tensor
    file: Path | None

    def read(self, row: int, window: int, device: torch.device) -> Tensor:
        """Return the states of one window in a row."""
        return self.rows[row, window].to(device)


def make_block_inputs(
    rows: int, row: torch.Size, dtype: torch.dtype, folder: Path, machine: Machine, *, wanted: bool
) -> BlockInputs:
    """Return a buffer for the inputs of all blocks.

    It is in a file if a file is wanted and the disk has room, or if memory is short. An existing file of the right size
    is reused with its content.

    Args:
        rows: Number of rows.
        row: Shape of a row, that of the states of all windows.
        dtype: Dtype of the states.
        folder: Folder of the file. If no file can be reused, leftovers of an interrupted run in it are deleted.
        machine: The machine, for its memory limits.
        wanted: Whether to prefer a file, so that an interrupted run can be resumed.

    Raises:
        CorpusError: Neither memory nor the disk has enough room.
        OSError: The disk fails.
    """
    shape = torch.Size((rows, *row))
    needed, file = shape.numel() * dtype.itemsize, folder / f"tape{UNFINISHED}"
    exists = file.is_file() and file.stat().st_size == needed
    room = exists or needed < _DISK_SHARE * psutil.disk_usage(str(folder)).free
    if machine.holds_inputs(needed) and not (wanted and room):
        return BlockInputs(torch.empty(shape, dtype=dtype), None)
    if not room:
        raise CorpusError(
            f"the gradients need {needed / 2**30:.0f} GiB for block inputs, more than memory or {folder.parent} has: "
            "use fewer windows (--windows), or --no-gradients."
        )
    if not exists:
        for leftover in folder.glob(f"*{UNFINISHED}"):
            leftover.unlink()
    return BlockInputs(_in_file(shape, dtype, file), file)
