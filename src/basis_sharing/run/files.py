"""Single output files: checked before long work, written whole or not at all."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from basis_sharing.checkpoint.writer import output_errors
from basis_sharing.errors import OutputError
from basis_sharing.run.durable import write_whole


def check_files(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Make sure that files can be written, before the work that fills them.

    Raises:
        OutputError: A file exists and may not be replaced, is a folder, or its folder cannot be written to.
    """
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder: give the name of a file.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: choose another name, or pass --overwrite.")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise OutputError(f"cannot write to {path.parent} ({error.strerror}): choose another folder.") from None


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there.

    Raises:
        OutputError: The disk is full or fails.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
