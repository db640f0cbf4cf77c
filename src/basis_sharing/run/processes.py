"""Several processes that share one compression, as ``torchrun`` starts them.

Calibration windows, candidates and groups are divided among the processes; results that all of them need are summed or
gathered. With one process these operations do nothing.
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

_TIMEOUT = timedelta(days=7)  # a process may wait for the others' decompositions; torchrun ends the job if one dies


@dataclass(frozen=True)
class Processes:
    """The place of this process among the processes of a job.

    Attributes:
        index: Rank of this process, from 0.
        count: Number of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Return this process' place in its process group, or a single process if it has joined none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes output and messages."""
        return self.index == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process, every ``count``-th of all items."""
        return items[self.index :: self.count]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by index."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        distributed.all_gather_object(values, value)
        return values

    def given_by(self, index: int, value: T | None) -> T:
        """Return the value of one process; the values of the others are ignored."""
        box = [value]
        if self.count > 1:
            distributed.broadcast_object_list(box, src=index)
        assert box[0] is not None
        return box[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the process group of ``torchrun`` within the context; yield a single process if there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Processes.current()
    finally:
        distributed.destroy_process_group()
