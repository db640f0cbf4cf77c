"""Narrow experts in vLLM: its own kernels for experts at the smaller width, between the two bases."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from basis_sharing.runtime.expert_entries_basis_sharing import Narrow
from basis_sharing.runtime.format_basis_sharing import FormatError

_BASES = ("input_basis", "output_basis")


class NarrowExpertsMethod(UnquantizedFusedMoEMethod):  # type: ignore[misc]
    """Computes the experts of a block at a smaller width.

    Args:
        moe: vLLM's configuration of the experts.
        entry: The entry of the experts.

    Raises:
        FormatError: vLLM has no kernel for experts of this width on this device.
    """

    def __init__(self, moe: Any, entry: Narrow) -> None:
        self.entry, self.whole = entry, moe.hidden_dim
        try:
            super().__init__(replace(moe, hidden_dim=entry.width, hidden_dim_unpadded=entry.width))
        except NotImplementedError as error:  # says for every kernel why it does not fit
            raise FormatError(
                f"vLLM has no kernel here for the experts of {entry.owner} at width {entry.width}: compress with "
                "--rank-multiple 32, or with --treatments factors."
            ) from error

    def maybe_roundup_sizes(
        self, hidden_size: int, intermediate_size_per_partition: int, act_dtype: torch.dtype, moe_parallel_config: Any
    ) -> tuple[int, int]:
        """Return the width of the model, and the size of the neurons that the kernel needs.

        Raises:
            FormatError: The kernel needs another width than that of the entry.
        """
        width, neurons = super().maybe_roundup_sizes(
            self.entry.width, intermediate_size_per_partition, act_dtype, moe_parallel_config
        )
        if width != self.entry.width:
            raise FormatError(
                f"vLLM's kernel for {self.entry.owner} needs a width that is a multiple of {width}, not "
                f"{self.entry.width}: compress with a larger --rank-multiple, or with --treatments factors."
            )
        self.moe.intermediate_size_per_partition = neurons
        return hidden_size, neurons

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Create the experts and the bases, and let the layer load both."""
        width = self.entry.width
        super().create_weights(
            layer, num_experts, width, intermediate_size_per_partition, params_dtype, **extra_weight_attrs
        )
        layer.input_basis = nn.Linear(self.whole, width, bias=False, dtype=params_dtype)
        layer.output_basis = nn.Linear(width, self.whole, bias=False, dtype=params_dtype)
        for name in _BASES:
            getattr(layer, name).requires_grad_(False)
        load_experts = layer.load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
            for name, tensor in weights:
                basis = name.removesuffix(".weight")
                if basis in _BASES:
                    getattr(layer, basis).weight.data.copy_(tensor)
                    yield name
                else:
                    yield from load_experts([(name, tensor)])

        layer.load_weights = load_weights

    def apply(self, layer: Any, x: Tensor, **routing: Any) -> Any:
        """Map ``x`` of shape ``[tokens, hidden]`` to the sum of what its experts write."""
        return _widened(layer, super().apply(layer, x=layer.input_basis(x), **routing))

    def apply_monolithic(self, layer: Any, x: Tensor, **routing: Any) -> Any:
        """Do the same with kernels that choose the experts themselves."""
        return _widened(layer, super().apply_monolithic(layer, x=layer.input_basis(x), **routing))


def _widened(layer: Any, written: Any) -> Tensor:
    """Return what experts write at the width of the model.

    Raises:
        FormatError: A kernel returns more than that.
    """
    if not isinstance(written, Tensor):
        raise FormatError(f"vLLM's kernel for experts returns {type(written).__name__}, which has no width to change.")
    found: Tensor = layer.output_basis(written)
    return found
