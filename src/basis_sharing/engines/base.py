"""The runtimes of exported models.

An engine is a module of this package that ends in ``register(Mine())``, where ``Mine`` is an :class:`Engine`. Neither
these modules nor what they run may import torch, unless the runtime itself needs it.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.run.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "basis_sharing_export.json"
"""The file of an exported folder that says what it holds."""


class Decoder(Protocol):
    """An exported model in its runtime, with a cache of keys and values."""

    def restart(self) -> None:
        """Empty the cache."""
        ...

    def step(self, ids: "NDArray[Any]") -> "NDArray[Any]":
        """Read tokens after those in the cache.

        Args:
            ids: Token ids, shape ``[batch, tokens]``; the batch is that of the tokens in the cache.

        Returns:
            The logits of the token after the last one, float32, shape ``[batch, words]``.
        """
        ...


class Engine(Protocol):
    """A runtime of exported models.

    Attributes:
        name: Name on the command line, which is that of the export too, e.g. ``"onnx"``.
        title: Name of the runtime, e.g. ``"ONNX Runtime"``.
        package: The Python package of the runtime, as on the package index.
        module: The module that it is imported as.
        extra: The extra of this package that installs it and what the export needs.
        largest_batch: The most sequences that exports for it read at once; None: any number.
    """

    name: str
    title: str
    package: str
    module: str
    extra: str
    largest_batch: int | None

    def start(self, folder: Path, threads: int) -> Decoder:
        """Load an exported folder into the runtime.

        Args:
            folder: The folder.
            threads: Threads of the runtime.
        """
        ...


ENGINES: Registry[Engine] = Registry("engine", "basis_sharing.engines")


def register(engine: Engine) -> Engine:
    """Register an engine, and return it.

    Raises:
        RecipeError: Another engine has this name.
    """
    return ENGINES.register(engine.name, engine)


def installed_version(package: str, extra: str) -> str:
    """Return the version of a package.

    Args:
        package: Its name on the package index.
        extra: The extra of this package that installs it.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise RecipeError(
            f"this needs the package {package}, which is not installed: pip install 'basis-sharing[{extra}]'."
        ) from None


def check_holds(folder: Path, engine: str) -> None:
    """Make sure that a folder is an export for an engine.

    Raises:
        ModelError: It is not, or is one for another engine.
    """
    import json

    try:
        form = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["form"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{folder} is no export for --engine {engine}: write one with basis-sharing export MODEL -o {folder} "
            f"--to {engine}."
        ) from None
    if form != engine:
        raise ModelError(f"{folder} is an export for {form}: measure it with --engine {form}.")
