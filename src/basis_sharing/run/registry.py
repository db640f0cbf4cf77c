"""Registries of weightings, treatments, costs and exports by name."""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from basis_sharing.errors import RecipeError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names to items, which the modules of a package register when they are imported.

    Args:
        what: Kind of the items in one word, for messages.
        package: Package whose modules and packages are imported when the registry is first read.
        plugins: Group of entry points of other packages that are loaded at the same time; None: there are none.
    """

    def __init__(self, what: str, package: str, plugins: str | None = None) -> None:
        self._what, self._package, self._plugins = what, package, plugins
        self._registered: dict[str, T] = {}
        self._complete = False

    def register(self, name: str, item: T) -> T:
        """Register an item under a name, and return it.

        Raises:
            RecipeError: Another item has this name.
        """
        known = self._registered.setdefault(name, item)
        if known is not item and _origin(known) != _origin(item):
            raise RecipeError(
                f"two {self._what}s are called {name!r} ({' and '.join(map(_origin, (known, item)))}): rename one, or "
                "do not import it."
            )
        return item

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name not in self._registered:
            raise RecipeError(f"unknown {self._what} {name!r}: choose from {', '.join(self._registered)}.")
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._registered

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(self._registered)

    def __len__(self) -> int:
        self._discover()
        return len(self._registered)

    def _discover(self) -> None:
        if self._complete:
            return
        self._complete = True
        package = importlib.import_module(self._package)
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            importlib.import_module(f"{self._package}.{module.name}")
        if self._plugins is not None:
            for plugin in importlib.metadata.entry_points(group=self._plugins):
                plugin.load()


def _origin(item: object) -> str:
    cls = item if isinstance(item, type) else type(item)
    return f"{cls.__module__}.{cls.__qualname__}"
