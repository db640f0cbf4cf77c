"""Export to an ordinary dense model by multiplying the factors out, for tools that do not support shared bases.

The dense model computes the same as the compressed model and has the original's size. It is meant for tools that
quantize or convert dense weights, and for separating the loss of a method from effects of the runtime.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.exports.base import register
from basis_sharing.run.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_ADDED = ("quantization_config", "auto_map")


class Dense:
    """Export to the equivalent dense model."""

    name = "dense"
    summary = "an ordinary dense model of the original's size, for tools that quantize or convert dense weights"
    weights: tuple[str, ...] = ()
    takes_dense = False

    def write(self, folder: Path, staging: Path, weights: str | None, progress: ProgressCallback) -> None:
        """Write the dense model, in the dtype of the compressed one, with its tokenizer.

        Raises:
            ModelError: The model cannot be loaded.
            OutputError: The disk has not enough space.
        """
        from basis_sharing.checkpoint.writer import check_space, write_model
        from basis_sharing.models.sizes import memory_bytes
        from basis_sharing.models.source import load_model, load_tokenizer, local_folder, resolve

        source = resolve(folder)
        dense = dense_model(load_model(source), progress=progress)
        check_space(staging, memory_bytes(dense))
        write_model(staging, dense, load_tokenizer(source), original=local_folder(source))


register(Dense())


def dense_model(model: Any, *, progress: ProgressCallback = silent) -> "PreTrainedModel":
    """Return the dense model that is equivalent to a compressed one up to rounding; products are computed in fp64.

    Args:
        model: Compressed model; it is not changed.
        progress: Receives one event per projection.
    """
    from basis_sharing.models.decoder import describe
    from basis_sharing.models.multimodal import is_multimodal
    from basis_sharing.models.quiet import quiet
    from basis_sharing.runtime.layers_basis_sharing import kind_of
    from basis_sharing.runtime.surgery import native_conversions

    skeleton = skeleton_of(model)
    config = skeleton.config
    transposed = {p.name: p.transposed for p in describe(skeleton).projections}
    compressed = [(entry, name) for entry in model.config.quantization_config.entries for name in entry.members]
    inside = tuple(f"{name}." for _, name in compressed)
    stored = model.state_dict()
    state = {name: tensor for name, tensor in stored.items() if not name.startswith(inside)}
    for done, (entry, name) in enumerate(compressed, start=1):
        kind = kind_of(entry)
        for weight, W in kind.dense(model.get_submodule(name)).items():
            turned = weight == "weight" and not transposed.get(name)
            state[f"{name}.{weight}"] = (W.T if turned else W).to(model.dtype).contiguous()
        bias = kind.renamed(entry).get(f"{name}.bias", f"{name}.bias")
        if bias in stored:
            state[f"{name}.bias"] = stored[bias]
        progress(Progress("multiplying factors out", done, len(compressed), "projections"))
    with quiet():
        dense: PreTrainedModel = type(skeleton).from_pretrained(
            None, config=config, state_dict=state, dtype=model.dtype
        )
    if is_multimodal(model):
        dense._weight_conversions = native_conversions(model)  # the names of the original's files
    return dense.eval()


def skeleton_of(model: Any) -> "PreTrainedModel":
    """Return the model of the architecture on the meta device, with dense projections."""
    import torch

    from basis_sharing.models.multimodal import auto_class_of_model

    with torch.device("meta"):
        skeleton: PreTrainedModel = auto_class_of_model(model).from_config(
            native_config(model.config), dtype=model.dtype
        )
    return skeleton


def native_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """Return the configuration of the architecture without the settings that the compression added."""
    from transformers import AutoConfig

    settings = {name: value for name, value in config.to_dict().items() if name not in _ADDED}
    native: PretrainedConfig = AutoConfig.for_model(**settings)
    return native
