"""What can be wrong with any file of a model before its content matters, and what then helps."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from basis_sharing.errors import ModelError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # a pointer of Git LFS is about 130 bytes long


def readable(action: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function with every error of the system as a one-sentence :class:`ModelError` that names the file."""

    @functools.wraps(action)
    def reading(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return action(*args, **kwargs)
        except PermissionError as error:
            raise ModelError(
                f"{error.filename} cannot be read ({error.strerror}): ask its owner for the right to read it."
            ) from error
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read ({error.strerror}): check the path.") from error

    return reading


def get_again(path: Path) -> str:
    """Return what helps against a damaged file: a new download for what was downloaded, else a new copy."""
    folder = path if path.is_dir() else path.parent
    cached = any(part.startswith("models--") for part in folder.absolute().parts)
    if cached or (folder / ".cache" / "huggingface").is_dir():
        return "download it again"
    return "copy it again from where it is whole, or save the model again"


def check_file(file: Path) -> None:
    """Check that a file is one, with content of its own.

    Raises:
        ModelError: It is a link to nothing, a folder, empty, or a pointer of Git LFS.
    """
    if file.is_symlink() and not file.exists():
        raise ModelError(
            f"{file} is a link to {file.readlink()}, which is not there: copy the files that links of this folder "
            "name too, or give the folder that holds them."
        )
    if file.is_dir():
        raise ModelError(f"{file} is a folder, where a file is needed: {get_again(file.parent)}.")
    size = file.stat().st_size
    if size == 0:
        raise ModelError(f"{file} is empty: {get_again(file)}.")
    if size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
        raise ModelError(
            f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull in {file.parent} to fetch it."
        )
