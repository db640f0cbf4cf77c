"""The device, the memory budget and the processes of a run.

Results depend on them only by rounding. Memory means the memory that the system cannot reclaim from a process:
libraries, activations, statistics. Weights that are read in place from their files, and memory-mapped files of this
package, are not counted, because the system drops their pages when it needs memory.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from basis_sharing.errors import MemoryBudgetError, RecipeError
from basis_sharing.recipe.amounts import amount
from basis_sharing.run.processes import Processes

DEVICES = ("auto", "cpu", "cuda", "mps")

_FREE_SHARE = 0.8
_STATES_SHARE, _INPUTS_SHARE, _MOMENTS_SHARE, _WHITENINGS_SHARE = 0.3, 0.3, 0.3, 0.1
_MOST_WHITENINGS = 256 * 2**20
_SMALLEST_SHARD, _LARGEST_SHARD = 64 * 2**20, 2 * 10**9
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _LARGE = -3, -1, 2**18  # mallopt(3)
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """The device, memory and processes of a run.

    Attributes:
        device: Device on which blocks run and matrices are decomposed, one at a time.
        memory: Bytes of memory that this process may take.
        spare: Bytes of these that remain for data that may alternatively be kept in files; None: all.
        processes: The processes that share the work.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    memory: int = field(default_factory=lambda: default_memory())
    spare: int | None = None
    processes: Processes = field(default_factory=Processes.current)

    @property
    def algebra(self) -> torch.device:
        """Device on which matrices are decomposed: the run's device if it has fp64, else the CPU."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def whitening_bytes(self) -> int:
        """Bytes of whitenings that may be cached."""
        return min(_MOST_WHITENINGS, int(_WHITENINGS_SHARE * self._spare))

    @property
    def shard_bytes(self) -> int:
        """Largest size in bytes of the weight files that a model is written to."""
        return max(_SMALLEST_SHARD, min(_LARGEST_SHARD, self._spare // 4))

    def holds_states(self, size: int) -> bool:
        """Whether the hidden states between two blocks, ``size`` bytes, may be kept in memory."""
        return size <= _STATES_SHARE * self._spare

    def holds_inputs(self, size: int) -> bool:
        """Whether the inputs of all blocks, ``size`` bytes, may be kept in memory."""
        return size <= _INPUTS_SHARE * self._spare

    def holds_moments(self, size: int) -> bool:
        """Whether the second moments of all blocks, ``size`` bytes, may be kept in memory."""
        return size <= _MOMENTS_SHARE * self._spare

    def needing(self, least: int) -> "Machine":
        """Return the machine with the memory that remains after the ``least`` bytes that are always needed.

        Raises:
            MemoryBudgetError: The memory is less than that; the message says how much is needed.
        """
        if least > self.memory:
            raise MemoryBudgetError(too_little(self.memory, least))
        return replace(self, spare=self.memory - least)

    @property
    def _spare(self) -> int:
        return self.memory if self.spare is None else self.spare


@contextmanager
def decomposing_on(device: torch.device) -> Iterator[None]:
    """Let PyTorch decompose matrices with cuSOLVER in the context, if the device is a CUDA device.

    Its own choice is MAGMA for some of them, which is slower for one large matrix and prints warnings.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.preferred_linalg_library()
    torch.backends.cuda.preferred_linalg_library("cusolver")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_linalg_library(before)


def machine_for(device: str | None, max_memory: int | str | None, model: Any) -> Machine:
    """Return the machine of a run.

    Args:
        device: Name of a device; None: where a model in memory is, else ``"auto"``.
        max_memory: Bytes this process may take, or text such as ``"6GiB"``; None: most of what is free.
        model: The model as it was given.

    Raises:
        RecipeError: There is no such device, or the size cannot be parsed.
    """
    placed = getattr(model, "device", None)
    chosen = placed if device is None and placed is not None else choose(device or "auto")
    memory = default_memory() if max_memory is None else parsed_size(max_memory)
    if max_memory is not None:
        return_freed_memory()
    return Machine(chosen, memory)


def return_freed_memory() -> None:
    """Configure the C library to return freed memory to the system at once, if it supports this (glibc).

    Otherwise small allocations between large freed matrices fragment the heap, and the memory that cannot be returned
    grows with the number of layers.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _LARGE)


def choose(name: str) -> torch.device:
    """Return the device of a name; ``"auto"``: CUDA, else MPS, else the CPU.

    Raises:
        RecipeError: The name is unknown, or PyTorch has no such device.
    """
    if name not in DEVICES:
        raise RecipeError(f"unknown device {name!r}: choose from {', '.join(DEVICES)}.")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in present.items() if available)
    if not present[name]:
        raise RecipeError(f"PyTorch finds no {name} device here: pass --device cpu, or install a build that does.")
    return torch.empty(0, device=name).device  # with its index, as the device of a tensor has


def default_memory() -> int:
    """Return the default memory budget in bytes: the memory this process has, and most of the free memory.

    Processes that ``torchrun`` has started on this machine divide the free memory among them.
    """
    free = psutil.virtual_memory().available
    for file in map(Path, _CONTROL_GROUPS):
        if file.is_file() and (limit := file.read_text(encoding="ascii").strip()).isdigit():
            free = min(free, int(limit))
    return taken_memory() + int(_FREE_SHARE * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def taken_memory() -> int:
    """Return the bytes of this process that the system cannot reclaim; on other systems than Linux, all its bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def parsed_size(size: int | str) -> int:
    """Return the number of bytes of a size that may be written with a unit: ``"6GiB"``, ``"800MB"``.

    Raises:
        RecipeError: It is not a positive size.
    """
    try:
        value = amount(size)
    except ValueError:
        value = 0
    if not isinstance(value, int) or value < 1:
        raise RecipeError(f"{size!r} is not a size of memory: write e.g. 6GiB or 800MB.")
    return value


def too_little(memory: int, least: int) -> str:
    """Return the error message for a memory budget below the ``least`` bytes that are needed."""
    return (
        f"{written(memory)} of memory are too little for this model and these windows: the smallest budget that can "
        f"work is --max-memory {written(least)} (shorter windows, --length, need less)."
    )


def written(size: int) -> str:
    """Return a size in bytes as it is written on the command line, rounded up to MiB or GiB."""
    unit, name = (2**30, "GiB") if size >= 10 * 2**30 else (2**20, "MiB")
    return f"{-(-size // unit)}{name}"


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """Return bf16 where the hardware multiplies it faster than fp32, else fp32."""
    if device is not None and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
