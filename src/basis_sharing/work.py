"""What was measured once about a model, kept in a folder for the next run with the same model and text.

Second moments cost a pass over the calibration text, candidates a decomposition per group; neither depends on the
ratio. Every measurement is a folder of its own, named after a hash of all it depends on. It counts only once it says
what it is: what an interrupted run left half done is measured again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from basis_sharing.checkpoint.files import write_file
from basis_sharing.checkpoint.writer import locked, output_errors
from basis_sharing.errors import OutputError
from basis_sharing.results.base import software_versions

_ABOUT = "about.json"

About = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class WorkFolder:
    """A folder of measurements of one model.

    Attributes:
        path: The folder; it is made when something is kept in it.
        model: Fingerprint of the model.
        dtype: Name of the dtype it is loaded in.
    """

    path: Path
    model: str
    dtype: str

    def __post_init__(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"the work folder {self.path} is a file: choose a folder.")

    def measured(self, kind: str, about: About, measure: Callable[[Path], None]) -> Path:
        """Return the folder of a measurement, which is made if it is not there.

        Args:
            kind: What is measured, one word.
            about: All that it depends on besides the model and the software.
            measure: Fills an empty folder with it.

        Raises:
            OutputError: Another run is at the same measurement, or the disk is full or fails.
        """
        folder = self.find(kind, about)
        if folder is not None:
            return folder
        folder, whole = self._folder(kind, about), self._whole(about)
        with locked(folder), output_errors(folder):
            if not (folder / _ABOUT).is_file():  # it may have been finished while this run waited to begin
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                try:
                    measure(folder)
                    write_file(folder / _ABOUT, lambda path: _write(path, json.dumps(whole, indent=2) + "\n"))
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        return folder

    def find(self, kind: str, about: About) -> Path | None:
        """Return the folder of a measurement; None where it is not there or not complete."""
        folder = self._folder(kind, about)
        return folder if (folder / _ABOUT).is_file() else None

    def _whole(self, about: About) -> dict[str, object]:
        return {"model": self.model, "dtype": self.dtype, **about, "versions": software_versions()}

    def _folder(self, kind: str, about: About) -> Path:
        text = json.dumps(self._whole(about), sort_keys=True)
        return self.path / f"{kind}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def measured(
    work: WorkFolder | None,
    kind: str,
    about: About,
    measure: Callable[[], T],
    *,
    write: Callable[[T, Path], None],
    read: Callable[[Path], T],
) -> T:
    """Measure something; where there is a work folder, keep it there or take it from there.

    Args:
        work: The work folder, if there is one.
        kind: What is measured, one word.
        about: All that it depends on besides the model and the software.
        measure: Measures it.
        write: Writes it into an empty folder.
        read: Reads it from that folder.

    Raises:
        OutputError: Another run is at the same measurement, or the disk is full or fails.
    """
    if work is None:
        return measure()
    return read(work.measured(kind, about, lambda empty: write(measure(), empty)))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
