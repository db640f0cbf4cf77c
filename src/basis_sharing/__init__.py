"""Make language models smaller by sharing basis vectors between layers.

Importing this package is cheap (no torch) and teaches transformers to load compressed checkpoints: the quantizer is
registered the moment transformers loads its own.
"""

from basis_sharing.runtime.registration import register_with_transformers

TYPE_CHECKING = False  # importing typing would take longer than all the rest
if TYPE_CHECKING:
    from basis_sharing.evaluation.perplexity import evaluate
    from basis_sharing.recipe.recipe import Recipe
    from basis_sharing.reports.html import write_report
    from basis_sharing.results.comparison import Limits
    from basis_sharing.verbs.bench import bench
    from basis_sharing.verbs.compare import compare
    from basis_sharing.verbs.compress import compress
    from basis_sharing.verbs.plan import plan
    from basis_sharing.verbs.recheck import recheck
    from basis_sharing.verbs.recover import recover

__version__ = "0.2.0.dev0"
__all__ = [
    "Limits",
    "Recipe",
    "bench",
    "compare",
    "compress",
    "evaluate",
    "plan",
    "recheck",
    "recover",
    "write_report",
]

_LAZY = {
    "Limits": "basis_sharing.results.comparison",
    "Recipe": "basis_sharing.recipe.recipe",
    "bench": "basis_sharing.verbs.bench",
    "compare": "basis_sharing.verbs.compare",
    "compress": "basis_sharing.verbs.compress",
    "evaluate": "basis_sharing.evaluation.perplexity",
    "plan": "basis_sharing.verbs.plan",
    "recheck": "basis_sharing.verbs.recheck",
    "recover": "basis_sharing.verbs.recover",
    "write_report": "basis_sharing.reports.html",
}


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'basis_sharing' has no attribute {name!r}")
    import importlib

    found: object = getattr(importlib.import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted([*globals(), *_LAZY])


register_with_transformers()
