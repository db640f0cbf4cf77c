"""Key-value caches of models, by the name that the installed release of transformers gives them."""

import inspect
from typing import Any


def cache_input(model: Any, cache: Any) -> dict[str, Any]:
    """Return the argument that passes a cache to a model."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """Return the cache in the output of a model; None if it has none."""
    return output.cache if hasattr(output, "cache") else output.past_key_values
