"""The forms to which a compressed model can be exported.

An export is a module of this package that ends in ``register(Mine())``, where ``Mine`` is an :class:`Export`. These
modules must not import torch at the top, so that the command line can list them quickly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.registry import Registry


@dataclass(frozen=True)
class Stored:
    """Bytes of a number in an export, scales included.

    Attributes:
        matrix: Of a projection, or of a head with a table of its own.
        embeddings: Of the table of embeddings.
        tied_head: Of the same table again, if the head is tied to it and the export stores both; 0: it does not.
    """

    matrix: float
    embeddings: float
    tied_head: float = 0.0


class Export(Protocol):
    """A form other than its own in which a compressed model can be written.

    Attributes:
        name: Name on the command line, e.g. ``"dense"``.
        summary: Its purpose in one sentence.
        weights: The forms of weights that it can write, e.g. ``("float32", "int8")``; the first is the default. Empty:
            weights are written as they are.
        takes_dense: Whether it also writes models that are not compressed.
    """

    name: str
    summary: str
    takes_dense: bool

    @property
    def weights(self) -> tuple[str, ...]:
        """The forms of weights that it can write."""
        ...

    def write(self, folder: Path, staging: Path, weights: str | None, progress: ProgressCallback) -> None:
        """Write a model in this form.

        Args:
            folder: Folder of the compressed model, which has been checked; it must not be changed. If
                :attr:`takes_dense`, any model that the package reads.
            staging: Empty folder to write the files to; it gets its final name when this method returns.
            weights: One of :attr:`weights`; None: the default.
            progress: Receives progress events.

        Raises:
            RecipeError: A package is missing.
            ModelError: The model cannot be loaded, or has no such form.
            OutputError: The disk has not enough space.
        """
        ...


EXPORTS: Registry[Export] = Registry("export", "basis_sharing.exports")


def register(export: Export) -> Export:
    """Register an export, and return it.

    Raises:
        RecipeError: Another export has this name.
    """
    return EXPORTS.register(export.name, export)
