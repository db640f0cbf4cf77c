"""Export to OpenVINO, with keys and values in the model's state, as openvino_genai takes it.

Weights in 8 or 4 bits are those of NNCF: rounded to the nearest, 8 bits per output, 4 bits in groups of 64 inputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.exports.base import Stored, register
from basis_sharing.exports.runtimes.traced import RuntimeExport, free_shapes, sample_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROUP = 64


class OpenVino(RuntimeExport):
    """Export to OpenVINO."""

    name = "openvino"
    summary = "an OpenVINO model with its factors, for OpenVINO and openvino_genai"
    stored: Mapping[str, Stored] = {
        "float32": Stored(4, 4),
        "float16": Stored(2, 2),
        "int8": Stored(1, 1),
        "int4": Stored(0.5 + 2.5 / _GROUP, 1),
    }
    packages: tuple[str, ...] = ("nncf", "openvino-tokenizers")

    def convert(self, model: "PreTrainedModel", staging: Path, weights: str) -> None:
        """Write ``openvino_model.xml`` and ``openvino_model.bin``."""
        from transformers.exporters import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        inputs = sample_inputs(model)
        config = OpenVINOConfig(
            dynamic=True,
            dynamic_shapes=free_shapes(inputs),
            compress_to_fp16=weights == "float16",
            quantizer=_quantizer(weights),
        )
        exporter = OpenVINOExporter()
        program = exporter.export(model, inputs, config).program
        exporter.save_program(program, staging / "openvino_model.xml")

    def describe(self, model: "PreTrainedModel", tokenizer: Any, staging: Path) -> None:
        """Write the tokenizer, for transformers and as OpenVINO models."""
        import openvino
        from openvino_tokenizers import convert_tokenizer

        super().describe(model, tokenizer, staging)
        for converted, name in zip(
            convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True
        ):
            openvino.save_model(converted, staging / f"openvino_{name}.xml")


register(OpenVino())


def _quantizer(weights: str) -> Any:
    """Return what rounds the weights; None: nothing does."""
    if weights not in ("int8", "int4"):
        return None
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig

    modes = nncf.CompressWeightsMode
    if weights == "int8":
        return NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig(mode=modes.INT8_SYM))
    return NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig(mode=modes.INT4_ASYM, group_size=_GROUP, ratio=1.0))
