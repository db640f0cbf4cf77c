"""Make language models smaller by sharing basis vectors between layers.

Importing this package does not import torch. It enables transformers to load compressed checkpoints: the quantizer is
registered when transformers loads its own quantizers.
"""

from basis_sharing.runtime import KIND_FINDERS
from basis_sharing.runtime.registration import register_with_transformers

TYPE_CHECKING = False  # importing typing takes longer than everything else here
if TYPE_CHECKING:
    from basis_sharing.errors import (
        BasisSharingError,
        CheckpointError,
        CorpusError,
        MemoryBudgetError,
        ModelError,
        NumericalError,
        OutputError,
        PlanError,
        RecipeError,
        ResultError,
    )
    from basis_sharing.plans.plan import Plan
    from basis_sharing.recipe.recipe import Recipe
    from basis_sharing.results.comparison import Limits
    from basis_sharing.verbs.bench import bench
    from basis_sharing.verbs.compare import compare
    from basis_sharing.verbs.compress import compress
    from basis_sharing.verbs.estimate import estimate
    from basis_sharing.verbs.evaluate import evaluate
    from basis_sharing.verbs.export import export
    from basis_sharing.verbs.inspect import inspect
    from basis_sharing.verbs.load import load
    from basis_sharing.verbs.plan import plan
    from basis_sharing.verbs.recover import recover
    from basis_sharing.verbs.report import report
    from basis_sharing.verbs.rollout import rollout
    from basis_sharing.verbs.study import study

__version__ = "0.2.0.dev0"
__all__ = [
    "BasisSharingError",
    "CheckpointError",
    "CorpusError",
    "Limits",
    "MemoryBudgetError",
    "ModelError",
    "NumericalError",
    "OutputError",
    "Plan",
    "PlanError",
    "Recipe",
    "RecipeError",
    "ResultError",
    "bench",
    "compare",
    "compress",
    "estimate",
    "evaluate",
    "export",
    "inspect",
    "load",
    "plan",
    "recover",
    "report",
    "rollout",
    "study",
]

_DATA = {
    "Limits": "basis_sharing.results.comparison",
    "Plan": "basis_sharing.plans.plan",
    "Recipe": "basis_sharing.recipe.recipe",
}
_RENAMED = {
    "densify": "export(folder, output, to='dense')",
    "plan_model": "plan",
    "recheck": "compare(model, baseline=...)",
    "write_report": "report",
}


def _module_of(name: str) -> str:
    """Return the module that defines a public name: errors, data, and one module for each verb."""
    if name.endswith("Error"):
        return "basis_sharing.errors"
    return _DATA.get(name, f"basis_sharing.verbs.{name}")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name in _RENAMED:
        raise AttributeError(f"basis_sharing.{name} was renamed: call basis_sharing.{_RENAMED[name]} instead.")
    if name not in __all__:
        raise AttributeError(f"module 'basis_sharing' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_module_of(name)), name)
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted([*__all__, "__version__"])


def _find_treatments() -> None:
    """Import all treatments, which register the kinds of their entries."""
    import importlib

    list(importlib.import_module("basis_sharing.treatments.base").TREATMENTS)


KIND_FINDERS.append(_find_treatments)
register_with_transformers()
