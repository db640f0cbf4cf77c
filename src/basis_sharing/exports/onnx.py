"""Export to ONNX, in the layout that ONNX Runtime and onnxruntime-genai take.

Weights in 8 or 4 bits are those of ONNX Runtime's own quantizer: rounded to the nearest, in groups of 32 inputs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.exports.base import register
from basis_sharing.exports.runtimes.traced import RuntimeExport, free_shapes, sample_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROUP = 32
_FAST = 4  # MatMulNBits: features are rounded to 8 bits for the product


class Onnx(RuntimeExport):
    """Export to ONNX."""

    name = "onnx"
    summary = "an ONNX graph with its factors, for ONNX Runtime and onnxruntime-genai"
    weights: tuple[str, ...] = ("float32", "int8", "int4")
    packages: tuple[str, ...] = ("onnx", "onnxscript")

    def convert(self, model: "PreTrainedModel", staging: Path, weights: str) -> None:
        """Write ``model.onnx`` and ``model.onnx.data``."""
        import onnx_ir
        from transformers.exporters import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        inputs = sample_inputs(model)
        config = OnnxConfig(dynamic=True, dynamic_shapes=free_shapes(inputs))
        graph = OnnxExporter().export(model, inputs, config).program
        _rename(graph.graph)
        for node in graph.graph:
            node.metadata_props.clear()  # lines of Python, which take more room than the graph
        if weights != "float32":
            graph = _rounded(graph, 8 if weights == "int8" else 4)
        onnx_ir.save(graph, staging / "model.onnx", external_data="model.onnx.data")

    def describe(self, model: "PreTrainedModel", tokenizer: Any, staging: Path) -> None:
        """Write the tokenizer and the configuration of onnxruntime-genai."""
        super().describe(model, tokenizer, staging)
        (staging / "genai_config.json").write_text(json.dumps(_genai(model), indent=2) + "\n", encoding="utf-8")


register(Onnx())


def _rename(graph: Any) -> None:
    """Give inputs and outputs the names that tools for ONNX expect."""
    for values, kind in ((graph.inputs, "past_key_values"), (graph.outputs, "present")):
        for value in values:
            parts = value.name.split(".layers.")
            if len(parts) == 2:
                layer, part = parts[1].split(".")
                value.name = f"{kind}.{layer}.{part.removesuffix('s')}"


def _rounded(graph: Any, bits: int) -> Any:
    """Return a graph whose products have weights in few bits."""
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(_GROUP, is_symmetric=True, accuracy_level=_FAST, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx_ir.to_proto(graph), algo_config=config)
    quantizer.process()
    return onnx_ir.from_proto(quantizer.model.model)


def _genai(model: "PreTrainedModel") -> dict[str, Any]:
    """Return the configuration that onnxruntime-genai reads."""
    config, generation = model.config.get_text_config(), model.generation_config
    heads = config.num_attention_heads
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if isinstance(ends, list) else ends)
    length = config.max_position_embeddings
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
    }
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ends,
            "pad_token_id": pad,
            "context_length": length,
            "vocab_size": config.vocab_size,
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": False},
    }
