"""Export to ONNX, in the layout that ONNX Runtime and onnxruntime-genai take.

Weights in 8 or 4 bits are those of ONNX Runtime's own quantizer: rounded to the nearest, in groups of 32 inputs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.exports.base import Stored, register
from basis_sharing.exports.runtimes.traced import RuntimeExport, free_shapes, sample_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROUP = 32
_FAST = 4  # MatMulNBits: features are rounded to 8 bits for the product


class Onnx(RuntimeExport):
    """Export to ONNX."""

    name = "onnx"
    summary = "an ONNX graph with its factors, for ONNX Runtime and onnxruntime-genai"
    stored: Mapping[str, Stored] = {
        "float32": Stored(4, 4),
        "int8": Stored(1 + 4 / _GROUP, 1, 1 + 4 / _GROUP),
        "int4": Stored(0.5 + 4 / _GROUP, 0.5 + 4 / _GROUP, 0.5 + 4 / _GROUP),
    }
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
    """Return a graph whose products and embeddings have weights in few bits; a tied head has its own."""
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    _turn_tied_head(graph.graph)
    if bits == 8:  # the quantizer rounds tables to 4 bits only
        _round_tables(graph.graph)
    config = DefaultWeightOnlyQuantConfig(
        _GROUP, is_symmetric=True, accuracy_level=_FAST, bits=bits, op_types_to_quantize=("MatMul", "Gather")
    )
    quantizer = MatMulNBitsQuantizer(onnx_ir.to_proto(graph), algo_config=config)
    quantizer.process()
    return onnx_ir.from_proto(quantizer.model.model)


def _turn_tied_head(graph: Any) -> None:
    """Replace a table that is transposed at every use by one that is transposed: only those are rounded."""
    import onnx_ir

    for node in [node for node in graph if node.op_type == "Transpose" and node.inputs[0].is_initializer()]:
        table = node.inputs[0].const_value.numpy()
        turned = table.transpose(node.attributes["perm"].as_ints()).copy()
        value = _constant(graph, f"{node.inputs[0].name}_turned", turned)
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)


def _round_tables(graph: Any) -> None:
    """Round tables that are looked up to 8 bits, with a scale for every row that is multiplied by afterwards."""
    import numpy as np
    import onnx_ir

    for node in [node for node in graph if node.op_type == "Gather" and _is_table(node)]:
        table, (_, ids), found = node.inputs[0].const_value.numpy(), node.inputs, node.outputs[0]
        scales = np.abs(table).max(1, keepdims=True).clip(1e-12) / 127
        tape = onnx_ir.tape.Tape()
        rows = tape.op(
            "Gather", [_constant(graph, f"{node.inputs[0].name}_codes", (table / scales).round().astype("i1")), ids]
        )
        number = tape.op("Cast", [rows], {"to": found.dtype})
        sizes = tape.op("Gather", [_constant(graph, f"{node.inputs[0].name}_scales", scales), ids])
        product = tape.op("Mul", [number, sizes])
        product.shape, product.type = found.shape, found.type
        graph.insert_before(node, tape.nodes)
        onnx_ir.convenience.replace_all_uses_with(found, product)
        graph.remove(node, safe=True)


def _is_table(node: Any) -> bool:
    table = node.inputs[0]
    return table.is_initializer() and len(table.shape) == 2 and table.dtype.is_floating_point()


def _constant(graph: Any, name: str, array: Any) -> Any:
    """Return a new initializer of a graph."""
    import onnx_ir

    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


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
