"""Measurements of a model, kept in a folder for the next run with the same model and text.

Second moments cost a pass over the calibration text, candidates a decomposition per group; neither depends on the
ratio. Every measurement has its own folder, named after a hash of everything it depends on. The measurement is complete
once ``about.json`` is written; before, the folder holds the partial results from which the next run resumes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from basis_sharing.errors import BasisSharingError, OutputError
from basis_sharing.run.durable import UNFINISHED, finish, write_text
from basis_sharing.run.files import locked, output_errors, write_file
from basis_sharing.run.processes import Processes
from basis_sharing.run.versions import software_versions

_ABOUT = "about.json"
_RUN = "run.json"

About = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class WorkFolder:
    """A folder of measurements of one model.

    Attributes:
        path: The folder; it is created when something is kept in it.
        model: Fingerprint of the model.
        dtype: Name of the dtype it is loaded in.
        processes: The processes of the run; each has its own folder, with the same measurements.
    """

    path: Path
    model: str
    dtype: str
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        with output_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"the work folder {self.path} is a file: choose a folder.")

    def measured(self, kind: str, about: About, measure: Callable[[Path], None]) -> Path:
        """Return the folder of a measurement; the measurement is made if it is not there.

        Args:
            kind: What is measured, one word.
            about: Everything it depends on besides the model and the software.
            measure: Writes the measurement to a folder, which may hold partial results of an interrupted run.

        Raises:
            OutputError: Another run makes the same measurement, or the disk is full or fails.
        """
        folder = self.find(kind, about)
        if folder is not None:
            return folder
        folder, whole = self._folder(kind, about), self._whole(about)
        with locked(folder), output_errors(folder):
            if self.find(kind, about) is None:  # another run may have completed it before the lock was acquired
                if (folder / _ABOUT).exists():  # it was complete, and was damaged later
                    shutil.rmtree(folder)
                folder.mkdir(parents=True, exist_ok=True)
                measure(folder)
                files = [path for path in sorted(folder.glob("[!.]*")) if path.suffix != UNFINISHED]
                for path in files:
                    finish(path)
                sizes = {path.name: path.stat().st_size for path in files}
                text = json.dumps({**whole, "files": sizes}, indent=2) + "\n"
                write_file(folder / _ABOUT, lambda path: write_text(path, text))
            for path in folder.glob(f"*{UNFINISHED}"):
                path.unlink()
        return folder

    def find(self, kind: str, about: About) -> Path | None:
        """Return the folder of a measurement; None if it is missing, incomplete or damaged in any process."""
        folder = self._complete(self._folder(kind, about))
        return folder if all(self.processes.gather(folder is not None)) else None

    def _complete(self, folder: Path) -> Path | None:
        if not (folder / _ABOUT).is_file():
            return None
        try:
            sizes = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["files"]
        except (ValueError, KeyError):
            return None
        present = {path.name: path.stat().st_size for path in folder.iterdir()}
        return folder if sizes.items() <= present.items() else None

    def parts_folder(self, kind: str, about: About) -> Path:
        """Return a folder for partial results, each of which is a complete file.

        Args:
            kind: What the results are, one word.
            about: Everything they depend on besides the model and the software.

        Raises:
            OutputError: The folder cannot be created.
        """
        folder = self._folder(kind, about)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

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
    """Return a measurement; with a work folder it is read from there, or made and kept there.

    Args:
        work: The work folder; None: the measurement is not kept.
        kind: What is measured, one word.
        about: Everything it depends on besides the model and the software.
        measure: Makes the measurement.
        write: Writes it to an empty folder.
        read: Reads it from that folder.

    Raises:
        OutputError: Another run makes the same measurement, or the disk is full or fails.
    """
    if work is None:
        return measure()
    return read(work.measured(kind, about, lambda empty: write(measure(), empty)))


def work_beside(output: Path) -> Path:
    """Return the default work folder of a run, which is beside its output, or what that is a link to."""
    output = output.resolve()
    return output.with_name(f"{output.name}.work")


@contextmanager
def until_done(folder: Path) -> Iterator[None]:
    """Remove a folder at the end of the context, unless the body fails or is interrupted."""
    yield
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def same_run(folder: Path, identity: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Reserve a work folder for one run, also through interruptions, until it is done.

    After an error of this package, which other settings may avoid, any run may use the folder.

    Args:
        folder: The work folder.
        identity: Names and values that identify the run, by subject as the error message names it.

    Raises:
        OutputError: The folder holds another interrupted run; the message says what is different.
    """
    file = folder / _RUN
    _refuse_another(file, identity)
    write_file(file, lambda path: write_text(path, json.dumps(identity, indent=2) + "\n"))
    try:
        with until_done(folder):
            yield
    except BasisSharingError:
        file.unlink(missing_ok=True)
        raise


def _refuse_another(file: Path, identity: Mapping[str, Mapping[str, object]]) -> None:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    wanted = json.loads(json.dumps(identity))
    for subject, values in wanted.items():
        for name, value in values.items():
            other = stored.get(subject, {}).get(name)
            if other == value:
                continue
            change = (
                f"with {subject} {name} = {other}, now it is {value}" if len(values) > 1 else f"and {subject} changed"
            )
            raise OutputError(
                f"{file.parent} holds an interrupted run {change}: give the same again to resume it, or remove that "
                "folder to start over."
            )
