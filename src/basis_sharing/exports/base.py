"""What a compressed model can be exported as.

An export is one file in this folder that ends in ``register(Mine())``, where ``Mine`` is an :class:`Export`.
Files of exports import nothing heavy at the top, so that the command line can list them without loading torch.
"""

from pathlib import Path
from typing import Protocol

from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.registry import Registry


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


EXPORTS: Registry[Export] = Registry("export", "basis_sharing.exports")


def register(export: Export) -> Export:
    """Make an export known.

    Raises:
        RecipeError: There is another one of this name.
    """
    return EXPORTS.register(export.name, export)
