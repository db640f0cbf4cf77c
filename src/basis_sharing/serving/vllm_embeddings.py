"""Embeddings and output heads in few bits, in vLLM's layers for them."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from basis_sharing.runtime.entries_basis_sharing import Embeddings
from basis_sharing.runtime.rounded_basis_sharing import RoundedEmbedding, RoundedLinear
from basis_sharing.serving.vllm_parts import routing_parameter


class RoundedEmbeddingMethod(QuantizeMethodBase):  # type: ignore[misc]
    """Looks tokens up in a table in few bits, and multiplies by it.

    Args:
        entry: The entry of the table.
    """

    def __init__(self, entry: Embeddings) -> None:
        self.entry = entry

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Create the table of this process, and parameters whose loaders pass its rows to it."""
        (count,) = output_partition_sizes
        table = RoundedEmbedding(count, input_size_per_partition, self.entry.weight_grid, dtype=params_dtype)
        layer.table = table.requires_grad_(False)
        nn.init.zeros_(table.packed)
        nn.init.zeros_(table.scales)

        def load(name: str, tensor: Tensor, _: str | int | None) -> None:
            found = layer.shard_indices
            rows = tensor[found.org_vocab_start_index : found.org_vocab_end_index]
            held = table.packed if name == "weight" else table.scales
            held.data[: len(rows)].copy_(rows)

        for name in ("weight", "scales"):
            setattr(layer, name, routing_parameter(name, load))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Bring the codes into the layout of their product."""
        layer.table.arrange()

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """Return the embeddings of tokens."""
        found: Tensor = layer.table(input_)
        return found

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the logits of the tokens of this process."""
        logits = RoundedLinear.forward(layer.table, x)
        return logits if bias is None else logits + bias

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Let an output head use the table of the embeddings."""
        layer.table = embed_tokens.table
        return layer
