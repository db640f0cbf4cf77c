"""The runtime of compressed models: the format, modules and quantizer that are copied into every checkpoint."""

TYPE_CHECKING = False  # importing typing takes longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Callable

KIND_FINDERS: "list[Callable[[], None]]" = []
"""Called to register further kinds if an entry has an unknown kind."""
