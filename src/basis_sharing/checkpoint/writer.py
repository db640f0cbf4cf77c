"""Write a model folder so that it is either complete or not there."""

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging as transformers_logging

from basis_sharing.errors import OutputError
from basis_sharing.run.durable import flush

_MARGIN = 16 * 2**20


@contextmanager
def reserve(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> Iterator[Path]:
    """Reserve an output folder for one run and yield an empty folder beside it to write into.

    Nothing is left behind when the body fails. :func:`publish` turns the yielded folder into the output.

    Args:
        folder: The folder to be created.
        overwrite: Whether a model folder that is already there may be replaced.
        inputs: Files and folders the run reads; none of them may be inside ``folder``.

    Raises:
        OutputError: The folder is in use, holds something, is or contains an input, or cannot be created.
    """
    folder = folder.absolute()
    _check(folder, overwrite=overwrite, inputs=inputs)
    staging = folder.parent / f".{folder.name}.partial"
    with locked(folder):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the folders above it are made, and removed again where it was not.

    Raises:
        OutputError: The folder is in use, or cannot be created.
    """
    folder = folder.absolute()
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    created = [path for path in folder.parents if not path.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another run is writing {folder}: wait for it, or choose another folder.") from None
    except OSError as error:
        raise OutputError(f"cannot write to {folder.parent} ({error.strerror}): choose another folder.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if not folder.exists():
            for path in created:
                with suppress(OSError):
                    path.rmdir()


def _check(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    resolved = folder.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(resolved):
            raise OutputError(f"the output {folder} is, or contains, the input {path}: choose another folder.")
    if folder.is_file():
        raise OutputError(f"{folder} is a file: choose a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{folder} exists and is not empty: choose another folder, or pass --overwrite.")
    if not (folder / "config.json").is_file():
        raise OutputError(f"{folder} is not a model folder, so it is not overwritten: remove it yourself.")


def check_space(folder: Path, needed: int) -> None:
    """Make sure that ``needed`` bytes fit on the disk of ``folder`` (which need not exist yet).

    Raises:
        OutputError: They do not fit.
    """
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _MARGIN:
        raise OutputError(
            f"{needed / 2**20:,.0f} MiB are needed in {folder}, but only {free / 2**20:,.0f} MiB are free: "
            "make room, or choose a folder on another disk."
        )


def write_model(staging: Path, model: Any, tokenizer: Any, *, max_shard_size: int | str = "2GB") -> None:
    """Write a model and its tokenizer into an empty folder, index last.

    Raises:
        OutputError: The disk is full or fails.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with output_errors(staging):
            model.save_pretrained(staging, max_shard_size=max_shard_size)
            tokenizer.save_pretrained(staging)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn the failures of a disk into one sentence."""
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


def publish(staging: Path, folder: Path) -> None:
    """Make a finished staging folder the output: flush it to the disk, then rename it.

    Raises:
        OutputError: The disk fails.
    """
    folder = folder.absolute()
    with output_errors(staging):
        for path in [*staging.iterdir(), staging]:
            flush(path)
        replaced = folder.parent / f".{folder.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
