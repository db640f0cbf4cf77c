"""Atomic writing of model folders: a folder is complete or absent."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from basis_sharing.checkpoint.originals import carry_files, keeping_dtypes
from basis_sharing.errors import OutputError
from basis_sharing.models.multimodal import is_multimodal
from basis_sharing.run.durable import flush
from basis_sharing.run.files import locked, output_errors

_MARGIN = 16 * 2**20


@contextmanager
def reserve(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> Iterator[Path]:
    """Reserve an output folder for one run and yield an empty folder beside it to write into.

    The yielded folder is removed if the body fails; :func:`publish` makes it the output.

    Args:
        folder: The folder to be created.
        overwrite: Whether an existing model folder may be replaced.
        inputs: Files and folders the run reads; none of them may be inside ``folder``.

    Raises:
        OutputError: The folder is in use, is not empty, is or contains an input, or cannot be created.
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


def write_model(
    staging: Path, model: Any, tokenizer: Any, *, original: Path | None = None, max_shard_size: int | str = "2GB"
) -> None:
    """Write a model and its tokenizer to an empty folder.

    Args:
        staging: The folder.
        model: The model.
        tokenizer: Its tokenizer.
        original: The folder that the model comes from. If the model is multimodal, the files of its processor are
            copied from there, and the tensors beside its language model are written as they are there.
        max_shard_size: Largest size of a weight file, in bytes or as ``"2GB"``.

    Raises:
        OutputError: The disk is full or fails.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with output_errors(staging), keeping_dtypes(model, original) as arguments:
            model.save_pretrained(staging, max_shard_size=max_shard_size, **arguments)
            tokenizer.save_pretrained(staging)
            if original is not None and is_multimodal(model):
                carry_files(original, staging)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


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
