"""Multiply the factors out: an ordinary dense model for tools that know nothing of shared bases.

It computes what the compressed model computes and has the original's size again: for tools that quantize or convert
dense weights, and for telling apart what a method lost from what a runtime does.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from basis_sharing.checkpoint.folder import compressed_source
from basis_sharing.checkpoint.writer import check_space, publish, reserve, write_model
from basis_sharing.models.decoder import describe
from basis_sharing.models.quiet import quiet
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import load_model, load_tokenizer
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.runtime.layers_basis_sharing import kind_of

_OURS = ("quantization_config", "auto_map")


def densify(
    folder: str | Path, output: str | Path, *, overwrite: bool = False, progress: ProgressCallback = silent
) -> PreTrainedModel:
    """Write the dense model that a compressed folder stands for.

    Args:
        folder: A compressed folder.
        output: Folder for the dense model.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives one event per projection.

    Returns:
        The dense model, in the dtype of the compressed one.

    Raises:
        ModelError: The folder holds no compressed model.
        CheckpointError: It contradicts itself or is too new.
        OutputError: The output cannot be written.
    """
    (source, path), output = compressed_source(folder, "there is nothing to multiply out"), Path(output)
    with reserve(output, overwrite=overwrite, inputs=[path]) as staging:
        dense = dense_model(load_model(source), progress=progress)
        check_space(staging, memory_bytes(dense))
        write_model(staging, dense, load_tokenizer(source))
        publish(staging, output)
    return dense


def dense_model(model: Any, *, progress: ProgressCallback = silent) -> PreTrainedModel:
    """Return a dense model that computes what a compressed one does, up to rounding; products are made in fp64.

    Args:
        model: Compressed model; it is not changed.
        progress: Receives one event per projection.
    """
    config = _native_config(model.config)
    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    transposed = {p.name: p.transposed for p in describe(skeleton).projections}
    compressed = [(entry, name) for entry in model.config.quantization_config.entries for name in entry.members]
    inside = tuple(f"{name}." for _, name in compressed)
    stored = model.state_dict()
    state = {name: tensor for name, tensor in stored.items() if not name.startswith(inside)}
    for done, (entry, name) in enumerate(compressed, start=1):
        kind = kind_of(entry)
        W = kind.weight(model.get_submodule(name))
        state[f"{name}.weight"] = (W if transposed[name] else W.T).to(model.dtype).contiguous()
        bias = kind.renamed(entry).get(f"{name}.bias", f"{name}.bias")
        if bias in stored:
            state[f"{name}.bias"] = stored[bias]
        progress(Progress("multiplying factors out", done, len(compressed), "projections"))
    with quiet():
        dense: PreTrainedModel = type(skeleton).from_pretrained(
            None, config=config, state_dict=state, dtype=model.dtype
        )
    return dense.eval()


def _native_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of the architecture without what the compression added."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _OURS}
    native: PretrainedConfig = AutoConfig.for_model(**settings)
    return native
