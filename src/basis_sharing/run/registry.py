"""Things that register themselves under a name: weightings, treatments, costs, exports."""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from basis_sharing.errors import RecipeError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """What is registered, by name; the modules of a package register theirs when they are imported.

    Args:
        what: What is registered, one word, for messages.
        package: Package whose modules (and packages) are imported when the registry is first asked.
        plugins: Group of entry points of other packages that are loaded then; None: there are none.
    """

    def __init__(self, what: str, package: str, plugins: str | None = None) -> None:
        self._what, self._package, self._plugins = what, package, plugins
        self._registered: dict[str, T] = {}
        self._complete = False

    def register(self, name: str, item: T) -> T:
        """Register something, and return it.

        Raises:
            RecipeError: Something else has this name.
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
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
            importlib.import_module(f"{self._package}.{module.name}")
        if self._plugins is not None:
            for plugin in importlib.metadata.entry_points(group=self._plugins):
                plugin.load()


def _origin(item: object) -> str:
    cls = item if isinstance(item, type) else type(item)
    return f"{cls.__module__}.{cls.__qualname__}"
