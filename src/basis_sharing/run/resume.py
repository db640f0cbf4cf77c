"""How far a pass over the calibration text has come, on disk now and then."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from basis_sharing.run.durable import flush, write_whole
from basis_sharing.run.processes import Processes

_SHARE = 0.05


class ResumePoint:
    """The last point of a pass that a later run can go on from.

    Writing takes about a twentieth of the time at most: a point that comes too soon after the last one is passed over,
    and what lies behind it is done again after an interruption.

    Several processes write their points at the same steps, and go on together or not at all.

    Args:
        file: Where it is kept; None: nowhere.
        processes: The processes that make the pass.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, file: Path | None, processes: Processes | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._processes, self._clock = file, processes or Processes(), clock
        self._next = 0.0

    def resume(self, states: Tensor | None = None) -> int:
        """Return how many steps were done, and put the states that were reached into ``states``; 0 if none were."""
        found = self._read()
        if found is not None and states is not None and found["states"].shape != states.shape:
            found = None  # of another number of processes
        done = 0 if found is None else int(found["done"])
        if set(self._processes.gather(done)) != {done}:
            return 0
        if found is not None and states is not None:
            states.copy_(found["states"])
        return done

    def _read(self) -> dict[str, Tensor] | None:
        if self._file is None or not self._file.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(self._file)
        except SafetensorError:  # damaged: begin anew
            return None
        return found

    def reach(self, done: int, states: Tensor | None = None, *, beside: Path | None = None) -> None:
        """Write down that ``done`` steps are done, unless the last time was only just now.

        Args:
            done: Number of steps.
            states: What the next step begins with.
            beside: A file written through memory that the next step needs as well.
        """
        if self._file is None:
            return
        start = self._clock()
        if self._processes.given_by(0, start < self._next):
            return
        if beside is not None:
            flush(beside)
        tensors = {"done": torch.tensor(done)} | ({} if states is None else {"states": states})
        write_whole(self._file, lambda path: save_file(tensors, path))
        stop = self._clock()
        self._next = stop + (stop - start) / _SHARE
