"""Register the quantizer with transformers without importing transformers.

transformers has no entry point for quantizers. Where it is already loaded the quantizer is registered at once;
otherwise an import hook does it right after ``transformers.quantizers.auto`` has been executed.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TRIGGER = "transformers.quantizers.auto"


class _AfterImport:
    """A finder of ``sys.meta_path``; not a MetaPathFinder, since importlib.abc imports tempfile and shutil."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    importlib.import_module("basis_sharing.runtime.modeling_basis_sharing")


def register_with_transformers() -> None:
    """Register the quantizer now, or as soon as transformers is imported."""
    if _TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
