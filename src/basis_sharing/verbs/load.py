"""``load``: load a model, dense or compressed, with its tokenizer."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basis_sharing.checkpoint.loading import load_any
from basis_sharing.evaluation.measuring import torch_dtype
from basis_sharing.recipe.model import DtypeName
from basis_sharing.run.machine import choose


def load(
    model: str | Path, *, dtype: DtypeName = "auto", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, dense or compressed, and its tokenizer.

    For a compressed folder, the configuration is first checked against the headers of the weight files.

    Args:
        model: A model folder, a GGUF file, or a hub id.
        dtype: Dtype of the weights in memory: ``"auto"`` (as in the checkpoint; float32 for GGUF), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``; None: ``"auto"``.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        RecipeError: There is no such dtype or device.
        ModelError: The model cannot be loaded.
        CheckpointError: A compressed folder is inconsistent or too new.

    Example:
        >>> model, tokenizer = basis_sharing.load("./llama-20")
        >>> inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
        >>> text = tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0])
    """
    return load_any(model, torch_dtype(dtype), choose(device or "auto"))
