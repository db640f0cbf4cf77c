"""Several processes at one compression, as PyTorch's launcher starts them.

Calibration windows, candidates and groups are divided among the processes; what all of them need is added up or
exchanged. One process is the special case in which nothing has to be exchanged.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # a process may wait for the others' decompositions; one that dies ends the job at once


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a job.

    Attributes:
        index: Its number.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Return this process' place in the process group it has joined, if it has."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process' share of what is to be done, every ``count``-th item."""
        return items[self.index :: self.count]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Return what every process gives, by index."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        distributed.all_gather_object(found, value)
        return found

    def given_by(self, index: int, value: T | None) -> T:
        """Return what one process gives; the others' values do not matter."""
        box = [value]
        if self.count > 1:
            distributed.broadcast_object_list(box, src=index)
        assert box[0] is not None
        return box[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` has started together with this one, if it was started by it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes.current()
    finally:
        distributed.destroy_process_group()
