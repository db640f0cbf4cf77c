"""What the checkpoint of a multimodal model takes from the folder of its original as it is."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from basis_sharing.models.multimodal import is_multimodal, text_stack
from basis_sharing.models.weight_files import weight_files

_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Files of processors, which turn pictures and sound into what the model reads."""


def carry_files(original: Path, folder: Path) -> None:
    """Copy the files of a model's processor, as far as it has some, unless the folder has its own.

    Raises:
        OSError: The disk is full or fails.
    """
    for name in _FILES:
        if (original / name).is_file() and not (folder / name).exists():
            shutil.copyfile(original / name, folder / name)


def stored_otherwise(model: PreTrainedModel, original: Path) -> dict[str, Tensor]:
    """Return the tensors beside the language model that the original stores in another dtype than the model has.

    A model has one dtype in memory, but its files may have several; a tensor that is not compressed keeps its own.

    Args:
        model: A multimodal model.
        original: The folder it was loaded from.

    Returns:
        The tensors as stored, by their names in the model.
    """
    stack, head = text_stack(model), model.get_output_embeddings()
    of_head = {id(parameter) for parameter in ([] if head is None else head.parameters())}
    beside = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith(f"{stack}.") and id(tensor) not in of_head
    }
    found: dict[str, Tensor] = {}
    for file in weight_files(original):
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as tensors:
            for on_disk, name in names_in_memory(model, tensors.keys()).items():
                if name not in beside:
                    continue
                stored: Tensor = tensors.get_tensor(on_disk)
                if stored.dtype != beside[name].dtype and stored.shape == beside[name].shape:
                    found[name] = stored
    return found


def names_in_memory(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the names that a model has for tensors on disk: transformers renames some when it loads them.

    Args:
        model: The model, real or on the meta device.
        names: The names of tensors in its files.

    Returns:
        The name in memory by the name on disk.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]

    def renamed(name: str) -> str:
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    return {name: renamed(name) for name in names}


@contextmanager
def keeping_dtypes(model: PreTrainedModel, original: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which ``save_pretrained`` writes what is beside the language model as it was.

    Args:
        model: The model, dense or compressed.
        original: The folder it was loaded from; None: there is none.
    """
    kept = {} if original is None or not is_multimodal(model) else stored_otherwise(model, original)
    if not kept:
        yield {}
        return
    state = {**model.state_dict(), **kept}
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        yield {"state_dict": state}
        return
    quantizer.get_state_dict_and_metadata = lambda _: (state, {})  # compressed models are asked for their state
    try:
        yield {}
    finally:
        del quantizer.get_state_dict_and_metadata
