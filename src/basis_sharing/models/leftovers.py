"""What the weight files hold and the architecture has no place for: refused where it matters, else noted."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from basis_sharing.errors import ModelError
from basis_sharing.models.file_checks import get_again, readable
from basis_sharing.models.weight_files import read_header
from basis_sharing.runtime.layers_basis_sharing import kind_of

_WRAPPERS = re.compile(
    r"^(base_model\.model\.|module\.)|(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_LORA = re.compile(r"(^|\.)(lora_[A-Za-z_]+|base_layer|modules_to_save)(\.|$)")
_CODES = re.compile(
    r"(^|[._])(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv|_2)?|quant_state|quant_map|absmax)(\.|$)"
)
_SCALES = re.compile(r"[._](scales?|scale_inv|scales?_\d|zeros|zero_point)$")
_OLD_BUFFERS = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|inv_freq|position_ids)$")
_PREDICTION = re.compile(r"(^|\.)(eh_proj|enorm|hnorm|shared_head|nextn|mtp)(\.|$)")
_BLOCK = re.compile(r"(.+?)\.(\d+)\.")
_NUMBERS = {"F64", "F32", "F16", "BF16", "BOOL", "I64", "I32", "I16", "U64", "U32", "U16"}
_ORIGINAL = "give the original weights, or dequantize these with the tool that made them and save the model again"


class Stored(NamedTuple):
    """One stored tensor: the safetensors name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@readable
def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Return the tensors in weight files by name, without reading their values; GGUF files count as empty.

    Raises:
        ModelError: A file cannot be read, or holds something other than weights by name.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        if file.suffix == ".safetensors":
            stored |= {name: Stored(about["dtype"], tuple(about["shape"])) for name, about in read_header(file).items()}
        elif file.suffix != ".gguf":
            stored |= {name: Stored(_short(t.dtype), tuple(t.shape)) for name, t in _unpickled(file).items()}
    return stored


def refuse_unusable(name: str, stored: Mapping[str, Stored], *, quantized: bool) -> None:
    """Refuse weights that would be lost or misread, as far as names and dtypes tell.

    Args:
        name: The model as the user gave it.
        stored: Its stored tensors.
        quantized: Whether the configuration says how the weights are quantized.

    Raises:
        ModelError: Names have a prefix of a wrapper, adapters are not merged, or weights are codes of a quantization.
    """
    wrapped = [key for key in stored if _WRAPPERS.search(key)]
    lora = next((key for key in stored if _LORA.search(key)), None)
    if lora is not None:
        raise ModelError(
            f"{name} holds an adapter beside the weights it changes ({lora}): merge it (merge_and_unload of peft) and "
            "save the model again."
        )
    if 2 * len(wrapped) > len(stored):
        found = _WRAPPERS.search(wrapped[0])
        assert found is not None
        raise ModelError(
            f"The names of the weights of {name} begin with, or contain, {found[0]!r} of a wrapper ({wrapped[0]}): "
            f"save the model without it, or rename each with name.replace({found[0]!r}, '', 1)."
        )
    codes = [] if quantized else [key for key, about in stored.items() if _is_code(key, about)]
    if codes:
        raise ModelError(
            f"{name} holds quantized weights ({len(codes)}, the first is {codes[0]}, {stored[codes[0]].dtype}), and "
            f"its config.json does not say how to read them: {_ORIGINAL}."
        )


def leftover_notes(
    name: str, model: PreTrainedModel, stored: Mapping[str, Stored], unexpected: Collection[str], *, quantized: bool
) -> list[str]:
    """Return notes about stored tensors that a loaded model has no place for.

    Args:
        name: The model as the user gave it.
        model: The loaded model.
        stored: The stored tensors.
        unexpected: Names, as the architecture has them, of stored tensors that transformers reports without place.
        quantized: Whether the configuration says how the weights are quantized.

    Raises:
        ModelError: They are scales of other weights, or blocks that the configuration does not count.
    """
    left = sorted({*unexpected, *_ignored(model, stored)})
    left = [key for key in left if not _OLD_BUFFERS.search(key)]
    scales = [] if quantized else [key for key in left if _SCALES.search(key)]
    if scales:
        raise ModelError(
            f"{name} holds {len(scales)} scales of quantized weights that its architecture does not apply (the first "
            f"is {scales[0]}): {_ORIGINAL}."
        )
    _refuse_uncounted_blocks(name, model, left)
    if not left:
        return []
    known = [stored[key] for key in left if key in stored]
    parameters = sum(torch.Size(about.shape).numel() for about in known)
    amount = f" ({parameters:,} parameters)" if len(known) == len(left) else ""
    return [
        f"{len(left)} stored weights{amount} have no place in the architecture and are not carried along: the first "
        f"is {left[0]}."
    ]


def refuse_missing(name: str, path: Path, missing: list[str], stored: Mapping[str, Stored]) -> None:
    """Refuse a model that lacks weights, which transformers would start from random numbers.

    Args:
        name: The model as the user gave it.
        path: Where its files are.
        missing: Names of the weights that were not found, in order.
        stored: The stored tensors.

    Raises:
        ModelError: Weights are missing; the message says whether they are stored under longer names.
    """
    if not missing:
        return
    prefix = _wrapper_of(missing, stored)
    if prefix is not None:
        raise ModelError(
            f"The weights of {name} are stored with {prefix!r} before their names: rename each with "
            f"name.removeprefix({prefix!r}), and save the model again."
        )
    raise ModelError(
        f"{name} lacks {len(missing)} of its weights (the first is {missing[0]}), which would start from random "
        f"numbers: {get_again(path)}."
    )


def untied_notes(model: PreTrainedModel) -> list[str]:
    """Return a note if the output head differs from the embeddings that the configuration ties it to.

    The configuration of the model is corrected: both are kept.
    """
    head = model.get_output_embeddings()
    # Some multimodal models have the setting in one of their two configurations only.
    tying = [c for c in (model.config.get_text_config(), model.config) if getattr(c, "tie_word_embeddings", False)]
    if not tying or head is None or next(head.parameters()) is next(model.get_input_embeddings().parameters()):
        return []
    for config in tying:
        config.tie_word_embeddings = False
    return ["config.json ties the output head to the embeddings, but the files hold two different ones: both are kept."]


def _is_code(key: str, about: Stored) -> bool:
    if _CODES.search(key):
        return True
    return about.dtype not in _NUMBERS and len(about.shape) > 1 and not _OLD_BUFFERS.search(key)


def _wrapper_of(missing: Collection[str], stored: Iterable[str]) -> str | None:
    """Return the prefix with which missing weights are stored; None if none is stored under a longer name."""
    wanted = set(missing)
    for key in stored:
        parts = key.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in wanted:
                return ".".join(parts[:start]) + "."
    return None


def _ignored(model: PreTrainedModel, stored: Iterable[str]) -> Iterator[str]:
    """Yield the stored tensors that the class of a model drops without a report."""
    patterns = model._keys_to_ignore_on_load_unexpected
    if not patterns:
        return
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    places, prefix = {*model.state_dict(), *_renamed(model)}, f"{model.base_model_prefix}."
    for key in stored:
        if ignored.search(key) and places.isdisjoint({key, key.removeprefix(prefix), prefix + key}):
            yield key


def _renamed(model: PreTrainedModel) -> Iterator[str]:
    """Yield the stored names of a compressed model's weights that have other names in memory."""
    for entry in getattr(getattr(model.config, "quantization_config", None), "entries", ()):
        yield from kind_of(entry).renamed(entry)


def _refuse_uncounted_blocks(name: str, model: PreTrainedModel, left: Iterable[str]) -> None:
    """Refuse blocks beyond those that the configuration counts, unless they predict more than the next token."""
    counted: dict[str, int] = {}
    for key in model.state_dict():
        found = _BLOCK.match(key)
        if found:
            counted[found[1]] = max(counted.get(found[1], 0), int(found[2]) + 1)
    beyond: dict[int, list[str]] = {}
    for key in left:
        found = _BLOCK.match(key)
        if found and int(found[2]) >= counted.get(found[1], int(found[2]) + 1):
            beyond.setdefault(int(found[2]), []).append(key)
    announced = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    blocks = [keys for keys in beyond.values() if not any(map(_PREDICTION.search, keys))]
    if len(blocks) > announced:
        raise ModelError(
            f"{name} holds {max(beyond) + 1} blocks, but its config.json counts {min(beyond)} (the first weight beyond "
            f"is {blocks[0][0]}): correct the number in config.json, or save the model with the blocks it should have."
        )


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a PyTorch file on the meta device; no code in it is run."""
    try:
        content: Any = torch.load(file, map_location="meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle raises anything on damaged input
        raise ModelError(
            f"{file} is damaged, or holds more than weights, which could run code and is not read: {get_again(file)} "
            "as safetensors."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise ModelError(
            f"{file} holds more than weights by name, such as the state of a trainer: save the model alone, with "
            "save_pretrained."
        )
    return content


def _short(dtype: torch.dtype) -> str:
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


_SHORT = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
}
