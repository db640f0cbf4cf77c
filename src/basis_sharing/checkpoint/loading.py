"""Loading of models, dense or compressed."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basis_sharing.checkpoint.folder import check_folder
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.source import load_config, load_model, load_tokenizer, resolve


def load_any(
    model: str | Path, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; a compressed folder is checked first.

    Args:
        model: A folder, a GGUF file or a hub id.
        dtype: Dtype of the weights; None: the checkpoint's own.
        device: Device of the model; None: the CPU.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ModelError: The model cannot be loaded.
        CheckpointError: A compressed folder is inconsistent or too new.
    """
    source = resolve(model)
    if source.kind == "folder" and source.path is not None and is_compressed(load_config(source).to_dict()):
        check_folder(source.path)
    loaded, tokenizer = load_model(source, dtype), load_tokenizer(source)
    return loaded if device is None else loaded.to(device), tokenizer
