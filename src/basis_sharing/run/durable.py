"""Files that are whole or not there, whenever the process or the machine stops."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
UNFINISHED = ".unfinished"  # suffix of what only an interrupted run needs


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, flush it to the disk, and move it there.

    Raises:
        OSError: The disk is full or fails; ``path`` is as it was.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(partial)
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    path.write_text(text, encoding="utf-8")


def write_text_whole(path: Path, text: str) -> None:
    """Write a text as :func:`write_whole` does.

    Raises:
        OSError: The disk is full or fails; ``path`` is as it was.
    """
    write_whole(path, lambda partial: write_text(partial, text))


def load_or_create(file: Path | None, kind: Callable[..., T], create: Callable[[], T]) -> T:
    """Return what an interrupted run has decided and kept in a JSON file, or decide it and keep it there.

    Args:
        file: Where it is kept, by the names of its fields; None: nowhere.
        kind: The dataclass it is.
        create: Returns it anew, where there is no file or a damaged one.

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


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes whose space is its own: a later write through memory cannot lack it.

    Raises:
        OSError: The disk has no room for it.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
