"""Atomic writing of files: whenever the process or the machine stops, a file is complete or absent."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
UNFINISHED = ".unfinished"  # suffix of files that are only needed to resume an interrupted run


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a temporary file beside ``path`` with ``write``, :func:`finish` it, and rename it to ``path``.

    Raises:
        OSError: The disk is full or fails; ``path`` is unchanged.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(partial)
        finish(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    path.write_text(text, encoding="utf-8")


def write_text_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically as :func:`write_whole` does.

    Raises:
        OSError: The disk is full or fails; ``path`` is unchanged.
    """
    write_whole(path, lambda partial: write_text(partial, text))


def load_or_create(file: Path | None, kind: Callable[..., T], create: Callable[[], T]) -> T:
    """Return the object that an interrupted run has kept in a JSON file, or create it and keep it there.

    Args:
        file: JSON file with the fields of the object; None: it is not kept.
        kind: The dataclass of the object.
        create: Creates the object if the file is missing or damaged.

    Raises:
        OSError: The disk is full or fails.
    """
    if file is not None and file.is_file():
        with suppress(ValueError, TypeError):
            return kind(**json.loads(file.read_text(encoding="utf-8")))
    created = create()
    if file is not None:
        write_text_whole(file, json.dumps(vars(created)))
    return created


def finish(path: Path) -> None:
    """Give a written file the mode that new files have here, and wait until it is on the disk; folders are flushed.

    Libraries that write through temporary files, safetensors among them, leave them to their owner alone.
    """
    if path.is_file():
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)
    flush(path)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(path: Path, size: int) -> None:
    """Create a file of ``size`` bytes with allocated space, so that a later write through a memory map cannot fail.

    Raises:
        OSError: The disk has not enough space.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
