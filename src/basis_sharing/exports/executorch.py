"""Export to ExecuTorch with XNNPACK, for phones: one sequence, and a static cache in the program.

The program has the inputs, outputs and constants that ExecuTorch's own runner of language models takes. Weights in 8
bits are those of torchao: rounded to the nearest, per output, with features in 8 bits too. A head that is tied to the
embeddings is stored twice.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.exports.base import Stored, register
from basis_sharing.exports.runtimes.traced import RuntimeExport, other_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONTEXT = 2048
"""Most tokens of the cache."""
_PIECE = 512
"""Most tokens that are read at once, for which the program plans its memory; runners read longer prompts in pieces."""


class ExecuTorch(RuntimeExport):
    """Export to ExecuTorch."""

    name = "executorch"
    summary = "a program with its factors for ExecuTorch with XNNPACK, for phones"
    stored: Mapping[str, Stored] = {"float32": Stored(4, 4, 4), "int8": Stored(1, 1, 1)}
    packages: tuple[str, ...] = ("torchao",)

    def convert(self, model: "PreTrainedModel", staging: Path, weights: str) -> None:
        """Write ``model.pte``."""
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

        context = _context(model)
        piece = min(_PIECE, context - 1)
        if weights == "int8":
            _round(model)
        with torch.no_grad():
            wrapped = _with_cache(model, context)
            tokens = torch.export.Dim("tokens", max=piece)
            inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "cache_position": torch.arange(3)}
            shapes = {"input_ids": {1: tokens}, "cache_position": {0: tokens}}
            exported = torch.export.export(wrapped, (), inputs, dynamic_shapes=shapes, strict=False)
        settings = ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=weights == "int8",  # tables that are looked up stay in 8 bits
        )
        program = to_edge_transform_and_lower(
            exported.run_decompositions({}),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=_constants(model, context, piece),
        ).to_executorch(settings)
        with open(staging / "model.pte", "wb") as file:
            program.write_to_file(file)


register(ExecuTorch())


def _context(model: "PreTrainedModel") -> int:
    """Return the length of the cache: a static one cannot drop what is before a sliding window.

    Raises:
        ModelError: The model keeps something else than keys and values.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    config = model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=_CONTEXT)
    if not all(isinstance(layer, (StaticLayer, StaticSlidingWindowLayer)) for layer in cache.layers):
        raise other_states(model)
    lengths = [layer.max_cache_len for layer in cache.layers]
    return int(min(*lengths, config.max_position_embeddings))


def _with_cache(model: "PreTrainedModel", context: int) -> Any:
    """Return a module that calls a model with the static cache in its buffers, and gives the last token's logits."""
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    placed = "position_ids" in inspect.signature(model.forward).parameters

    class WithCache(TorchExportableModuleWithStaticCache):  # type: ignore[misc]
        def forward(self, input_ids: Any, cache_position: Any) -> Any:
            for number, layer in enumerate(self.static_cache.layers):
                # Without this the cache is traced twice: as buffers, and as constants that it is found to hold.
                layer.keys = getattr(self, f"key_cache_{number}")
                layer.values = getattr(self, f"value_cache_{number}")
                layer.cumulative_length = getattr(self, f"cumulative_length_{number}")
                layer.cumulative_length.copy_(cache_position[0])
            positions = {"position_ids": cache_position[None]} if placed else {}
            return self.model(
                input_ids=input_ids, past_key_values=self.static_cache, use_cache=True, logits_to_keep=1, **positions
            ).logits

    own = model.generation_config.cache_implementation
    model.generation_config.cache_implementation = "static"
    try:
        return WithCache(model, batch_size=1, max_cache_len=context)
    finally:
        model.generation_config.cache_implementation = own


def _constants(model: "PreTrainedModel", context: int, piece: int) -> dict[str, Any]:
    """Return the constants that ExecuTorch's runner of language models asks a program for."""
    config, generation = model.config.get_text_config(), model.generation_config
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    found = {
        "get_max_seq_len": piece,
        "get_max_context_len": context,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": generation.bos_token_id if generation.bos_token_id is not None else config.bos_token_id,
        "get_eos_ids": ends if isinstance(ends, list) or ends is None else [ends],
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    return {name: value for name, value in found.items() if value is not None}


def _round(model: "PreTrainedModel") -> None:
    """Round products and tables to 8 bits, and the inputs of products when the program runs."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    axis = PerAxis(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # means nothing here, and hides the table from the pass that packs it
    quantize_(model, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=axis))
    tables = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=axis)
    quantize_(model, tables, lambda module, _: isinstance(module, torch.nn.Embedding))
