"""Register the quantizer with transformers without importing transformers.

transformers has no entry point for quantizers. If it is already imported, the quantizer is registered at once;
otherwise an import hook registers it right after ``transformers.quantizers.auto`` is executed.

Every process that uses the package imports this file, so it imports almost nothing.
"""

import sys

TYPE_CHECKING = False  # importing typing takes longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_TRIGGER = "transformers.quantizers.auto"


class _AfterImport:
    """A finder of ``sys.meta_path``; not a MetaPathFinder, since importlib.abc imports tempfile and shutil."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname != _TRIGGER:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: "ModuleType") -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import importlib

    importlib.import_module("basis_sharing.runtime.modeling_basis_sharing")


def register_with_transformers() -> None:
    """Register the quantizer now, or as soon as transformers is imported."""
    if _TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
