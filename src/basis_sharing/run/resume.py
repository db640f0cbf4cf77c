"""The progress of a pass over the calibration text, saved to disk periodically."""

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
    """The last saved point of a pass, from which a later run can resume.

    Saving takes at most about a twentieth of the time: a point that follows the last saved one too closely is not
    saved, and its steps are repeated after an interruption.

    Several processes save their points at the same steps, and resume together or not at all.

    Args:
        file: File of the point; None: it is not saved.
        processes: The processes that share the pass.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, file: Path | None, processes: Processes | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._processes, self._clock = file, processes or Processes(), clock
        self._next = 0.0

    def resume(self, states: Tensor | None = None) -> int:
        """Return the number of steps that are done, and load the saved states into ``states``; 0: start over."""
        saved = self._read()
        if saved is not None and states is not None and saved["states"].shape != states.shape:
            saved = None  # of another number of processes
        done = 0 if saved is None else int(saved["done"])
        if set(self._processes.gather(done)) != {done}:
            return 0
        if saved is not None and states is not None:
            states.copy_(saved["states"])
        return done

    def _read(self) -> dict[str, Tensor] | None:
        if self._file is None or not self._file.is_file():
            return None
        try:
            saved: dict[str, Tensor] = load_file(self._file)
        except SafetensorError:  # damaged: start over
            return None
        return saved

    def reach(self, done: int, states: Tensor | None = None, *, beside: Path | None = None) -> None:
        """Save that ``done`` steps are done, unless the last point was saved too recently.

        Args:
            done: Number of steps.
            states: Input of the next step.
            beside: A memory-mapped file that the next step needs as well; it is flushed first.
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
