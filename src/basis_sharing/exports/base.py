"""What a compressed model can be exported as.

An export is one file in this folder that ends in ``register(Mine())``, where ``Mine`` is an :class:`Export`.
Files of exports import nothing heavy at the top, so that the command line can list them without loading torch.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol

import basis_sharing.exports
from basis_sharing.errors import RecipeError
from basis_sharing.run.progress import ProgressCallback


class Export(Protocol):
    """A form other than its own that a compressed model can be written in.

    Attributes:
        name: What a user calls it, e.g. ``"dense"``.
        summary: What it is for, in one sentence.
    """

    name: str
    summary: str

    def write(self, folder: Path, staging: Path, progress: ProgressCallback) -> None:
        """Write a compressed model in this form.

        Args:
            folder: Folder of the compressed model, which has been checked; it must not be changed.
            staging: Empty folder that the files are written to; it gets its final name when this returns.
            progress: Receives progress events.

        Raises:
            ModelError: The model cannot be loaded, or has no such form.
            OutputError: There is too little space.
        """
        ...


_registered: dict[str, Export] = {}


def register(export: Export) -> None:
    """Make an export known.

    Raises:
        ValueError: There is another one of this name.
    """
    known = _registered.get(export.name)
    if known is not None:
        raise ValueError(
            f"two exports are called {export.name!r}: {type(known).__module__}.{type(known).__name__} and "
            f"{type(export).__module__}.{type(export).__name__}; rename one of them."
        )
    _registered[export.name] = export


def exports() -> dict[str, Export]:
    """Return every export by its name, in alphabetical order.

    Raises:
        ValueError: Two have one name.
    """
    for module in pkgutil.iter_modules(basis_sharing.exports.__path__):
        importlib.import_module(f"basis_sharing.exports.{module.name}")
    return dict(sorted(_registered.items()))


def find_export(name: str) -> Export:
    """Return the export of a name.

    Raises:
        RecipeError: There is none.
    """
    known = exports()
    if name not in known:
        raise RecipeError(f"unknown export {name!r}: choose from {', '.join(known)}.")
    return known[name]
