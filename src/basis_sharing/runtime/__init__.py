"""What a compressed model needs to run: the format, the modules and the quantizer that travel with every checkpoint."""

from collections.abc import Callable

KIND_FINDERS: list[Callable[[], None]] = []
"""Called to register further kinds where an entry has a kind that is not known yet."""
