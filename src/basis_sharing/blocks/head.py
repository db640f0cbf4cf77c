"""The output head of a model without its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from basis_sharing.blocks.calls import BlockCalls, replaced_blocks, split_call
from basis_sharing.blocks.placing import placed_outside
from basis_sharing.models.family import Decoder


@contextmanager
def head_only(
    model: Any, decoder: Decoder, calls: BlockCalls, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield a function that maps the last block's output and the token ids to logits.

    The function calls the model with its blocks replaced by the identity, so that final norm, head and soft cap are the
    model's own. Inside the context, everything outside the blocks is on ``device`` in ``dtype``.
    """
    given: list[Tensor] = []

    def unchanged(*args: Any, _forward: Any, _index: int, **kwargs: Any) -> Any:
        return calls.wrapped(split_call(args, kwargs)[0] if _index else given[0])

    def head(states: Tensor, input_ids: Tensor) -> Tensor:
        given[:] = [states]
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
        return logits

    blocks, outside = replaced_blocks(model, decoder, unchanged), placed_outside(model, decoder, device, dtype)
    with blocks, outside, _without_router_losses(model):
        yield head


@contextmanager
def _without_router_losses(model: Any) -> Iterator[None]:
    """Let a mixture compute no loss of its routers inside the context: there are none without its blocks."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    asked = [config for config in configs if getattr(config, "output_router_logits", False)]
    try:
        for config in asked:
            config.output_router_logits = False
        yield
    finally:
        for config in asked:
            config.output_router_logits = True
