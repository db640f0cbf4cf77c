"""The timed workloads: a prefill, a first token, and a decoding step."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

from basis_sharing.models.caches import cache_input, cache_of
from basis_sharing.run.devices import synchronize


class Prefill:
    """One forward pass over prompts, logits of the last token as in generation, no cache.

    Args:
        model: The model.
        ids: Token ids, shape ``[batch, tokens]``, on the model's device.
        forward: The function to run, e.g. the compiled model; None: the model.
    """

    def __init__(self, model: Any, ids: torch.Tensor, forward: Callable[..., Any] | None = None) -> None:
        self._forward, self._ids, self._logits = forward or model, ids, last_logits(model)

    def prepare(self) -> None:
        """Nothing to prepare."""

    @torch.inference_mode()
    def turn(self) -> float:
        """Run the prompts once; return the seconds."""
        start = time.perf_counter()
        self._forward(input_ids=self._ids, use_cache=False, **self._logits)
        synchronize(self._ids.device)
        return time.perf_counter() - start


class FirstToken:
    """The choice of the first token after prompts, including the filling of the cache."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        self._model, self._ids = model, ids

    def prepare(self) -> None:
        """Nothing to prepare."""

    @torch.inference_mode()
    def turn(self) -> float:
        """Choose the first token of the answer; return the seconds."""
        start = time.perf_counter()
        fill(self._model, self._ids)
        synchronize(self._ids.device)
        return time.perf_counter() - start


class Decode:
    """One more token for every sequence, greedily, from a static cache.

    Every repeat starts right after the prompt, which is read once.

    Args:
        model: The model.
        ids: The prompts, shape ``[batch, tokens]``, on the model's device.
        new_tokens: Steps in one repeat.
        forward: The function to run, e.g. the compiled model; None: the model.
    """

    def __init__(
        self, model: Any, ids: torch.Tensor, new_tokens: int, forward: Callable[..., Any] | None = None
    ) -> None:
        self._model, self._ids, self._forward = model, ids, forward or model
        self._cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new_tokens)
        self._inputs = cache_input(model, self._cache)
        self._first: torch.Tensor | None = None
        self._filled: list[dict[str, Any]] = []

    @torch.inference_mode()
    def prepare(self) -> None:
        """Reset the cache to the end of the prompts."""
        if self._first is None:
            self._first, _ = fill(self._model, self._ids, self._cache)
            self._filled = _state(self._cache)
        self._next = self._first
        _restore(self._cache, self._filled)

    @torch.inference_mode()
    def turn(self) -> float:
        """Decode one token; return the seconds."""
        start = time.perf_counter()
        output = self._forward(input_ids=self._next, use_cache=True, **self._inputs)
        self._next = output.logits[:, -1:].argmax(dim=-1)
        synchronize(self._ids.device)
        return time.perf_counter() - start


def fill(model: Any, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
    """Fill a cache with prompts; return the next tokens, shape ``[batch, 1]``, and the cache."""
    output = model(input_ids=ids, use_cache=True, **cache_input(model, cache), **last_logits(model))
    return output.logits[:, -1:].argmax(dim=-1), cache_of(output)


def last_logits(model: Any) -> dict[str, int]:
    """Return the argument with which a model computes the logits of the last token only, if it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _state(cache: Any) -> list[dict[str, Any]]:
    """Return a copy of the content of a static cache."""
    return [
        {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in vars(layer).items()}
        for layer in cache.layers
    ]


def _restore(cache: Any, state: list[dict[str, Any]]) -> None:
    """Copy a saved state back into the same tensors, whose addresses compiled code uses."""
    for layer, values in zip(cache.layers, state, strict=True):
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                getattr(layer, name).copy_(value)
            else:
                setattr(layer, name, value)
