"""Output files and folders: checked before long work, locked, written atomically, with errors as one sentence."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from basis_sharing.errors import OutputError
from basis_sharing.run.durable import write_whole

_NAME_BYTES = 200  # most disks allow 255, and temporary files have longer names


def check_files(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Make sure that files can be written, before the work whose results they hold.

    Raises:
        OutputError: A file exists and may not be replaced, is a folder, or its folder cannot be written to.
    """
    for path in paths:
        check_name(path)
        with _creating(path.parent):
            if path.is_dir():
                raise OutputError(f"{path} is a folder: give the name of a file.")
            if path.is_symlink() and not path.exists():
                raise OutputError(f"{path} is a link to {path.readlink()}, which is not there: remove the link.")
            if path.exists() and not overwrite:
                raise OutputError(f"{path} exists: choose another name, or pass --overwrite.")
            existing = next(folder for folder in path.absolute().parents if folder.exists())
            with tempfile.TemporaryFile(dir=existing):
                pass


def check_name(path: Path) -> None:
    """Make sure that the name of an output leaves room for those of the temporary files beside it.

    Raises:
        OutputError: It is too long.
    """
    if len(os.fsencode(path.name)) > _NAME_BYTES:
        raise OutputError(f"the name {path.name[:20]}... is too long: choose one of at most {_NAME_BYTES} bytes.")


@contextmanager
def _creating(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror}): choose another folder.") from None


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically as :func:`~basis_sharing.run.durable.write_whole` does, and create its folder.

    Raises:
        OutputError: The disk is full or fails.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs within the context.

    Missing parent folders are created, and removed at the end if the folder itself was not created.

    Raises:
        OutputError: The folder is in use, or cannot be created.
    """
    folder = folder.absolute()
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    with _creating(folder.parent):
        created = [path for path in folder.parents if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"another run is writing {folder}: wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if not folder.exists():
            for path in created:
                with suppress(OSError):
                    path.rmdir()


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn disk errors within the context into an :class:`~basis_sharing.errors.OutputError`.

    Raises:
        OutputError: The disk is full or fails.
    """
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk as its own error type, with the text of the system's message.
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full:
            raise OutputError(f"no space is left for {folder.parent}: make room and run again.") from error
        if isinstance(error, OSError) or "I/O error" in str(error):
            raise OutputError(f"writing to {folder.parent} failed ({error}): nothing was changed.") from error
        raise
