"""The amount of work of a model, to which its ideal speed is proportional."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basis_sharing.benchmark.workloads import FirstToken, Prefill, fill
from basis_sharing.models.caches import cache_input
from basis_sharing.models.linears import is_matrix_module
from basis_sharing.results.benchmark import Work
from basis_sharing.runtime.experts_basis_sharing import chosen_in

_aten = torch.ops.aten
# Fused attention -> position of its argument is_causal. PyTorch's counter lacks the CPU's and counts masked pairs.
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: 4,
    _aten._scaled_dot_product_flash_attention: 4,
    _aten._scaled_dot_product_efficient_attention: 6,
    _aten._scaled_dot_product_cudnn_attention: 6,
}


def work_of(model: Any, ids: torch.Tensor) -> Work:
    """Return the work of one prompt and of one decoding step after it.

    Args:
        model: The model, on the device of the prompt.
        ids: One prompt, shape ``[1, tokens]``.
    """
    prefill, first = (_multiply_adds(timed.turn) for timed in (Prefill(model, ids), FirstToken(model, ids)))
    read, products = _weights_read(model, ids)
    return Work(
        prefill_multiply_adds=prefill,
        first_token_multiply_adds=first,
        weight_bytes_per_step=read,
        products_per_step=products,
    )


def holds_stacked_experts(model: nn.Module) -> bool:
    """Return whether a model stores many experts in one parameter, of which a token uses only a few."""
    return any(parameter.dim() == 3 and "expert" in name for name, parameter in model.named_parameters())


def _multiply_adds(run: Callable[[], object]) -> int:
    formulas: dict[Any, Callable[..., int]] = {op: _attention_formula(at) for op, at in _ATTENTION.items()}
    formulas[_aten._grouped_mm] = _grouped_operations
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def _grouped_operations(tokens: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of a product of tokens, in groups, with a matrix for each group."""
    rows, features = tokens
    return int(2 * rows * features * weights[-1])


def _attention_formula(causal_at: int) -> Callable[..., int]:
    def operations(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **_: Any) -> int:
        batch, heads, queries, width = query
        keys = key[-2]
        pairs = queries * keys
        if len(others) > causal_at - 3 and others[causal_at - 3]:
            pairs = queries * (queries + 1) // 2 + queries * max(keys - queries, 0)
        return int(2 * batch * heads * pairs * (width + value[-1]))

    return operations


@torch.inference_mode()
def _weights_read(model: Any, ids: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of weights that one decoding step reads, and the number of its products with weight matrices."""
    read, products = 0, 0

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal read, products
        stored = sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
        read += round(stored * _chosen(module, (*args, *kwargs.values())))
        products += is_matrix_module(module)

    following, cache = fill(model, ids)
    # An embedding reads only one row per token, which is negligible.
    hooks = [
        module.register_forward_pre_hook(called, with_kwargs=True)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
    ]
    try:
        model(input_ids=following, use_cache=True, **cache_input(model, cache))
    finally:
        for hook in hooks:
            hook.remove()
    return read, products


def _chosen(module: nn.Module, given: Sequence[Any]) -> float:
    """Return the fraction of its weights that a module reads: of stacked experts those that tokens are sent to."""
    count = next((len(p) for p in module.parameters(recurse=False) if p.dim() == 3), 0)
    chosen = chosen_in(given) if count else None
    return 1.0 if chosen is None else len(chosen.unique()) / count
