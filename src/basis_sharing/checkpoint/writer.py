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
from basis_sharing.run.durable import finish
from basis_sharing.run.files import check_name, locked, output_errors

_MARGIN = 16 * 2**20


@contextmanager
def reserve(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> Iterator[Path]:
    """Reserve an output folder for one run and yield an empty folder beside it to write into.

    The yielded folder is removed if the body fails; :func:`publish` makes it the output. If ``folder`` is a link to a
    folder, the link stays and the folder that it names becomes the output.

    Args:
        folder: The folder to be created.
        overwrite: Whether an existing model folder may be replaced.
        inputs: Files and folders the run needs; none of them may be inside ``folder``, nor ``folder`` inside them.

    Raises:
        OutputError: The folder is in use, is not empty, is where an input is, cannot be replaced, or cannot be created.
    """
    with output_errors(folder):
        _check(folder, overwrite=overwrite, inputs=inputs)
    folder = folder.resolve()
    staging = folder.parent / f".{folder.name}.partial"
    with locked(folder):
        try:
            with output_errors(folder):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _check(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    check_name(folder)
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"{folder} is a link to {folder.readlink()}, which is not there: remove the link.")
    resolved = folder.resolve()
    check_name(resolved)
    for path in (path.resolve() for path in inputs):
        if path.is_relative_to(resolved):
            raise OutputError(f"the output {folder} is, or contains, the input {path}: choose another folder.")
        if resolved.is_relative_to(path):
            raise OutputError(f"the output {folder} is inside the input {path}: choose a folder elsewhere.")
    if folder.is_file():
        raise OutputError(f"{folder} is a file: choose a folder.")
    if not folder.is_dir():
        return
    if resolved.is_mount() or Path.cwd().is_relative_to(resolved):
        use = "where a disk is mounted" if resolved.is_mount() else "where this command runs"
        raise OutputError(f"{folder} is {use}, so it cannot be replaced as a whole: choose a folder in it.")
    if not any(folder.iterdir()):
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
    needed += _MARGIN
    if free < needed:
        raise OutputError(
            f"{-(-needed // 2**20):,} MiB are needed in {folder}, but only {free // 2**20:,} MiB are free: "
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
    """Make a finished staging folder the output: finish every file, then rename it.

    Raises:
        OutputError: The disk fails.
    """
    folder = folder.resolve()
    with output_errors(staging):
        for path in [*staging.rglob("*"), staging]:
            finish(path)
        replaced = folder.parent / f".{folder.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
