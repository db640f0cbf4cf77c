"""Sources of models, and loading from them: a folder, a GGUF file or the Hugging Face Hub."""

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from basis_sharing.errors import ModelError, ModelWarning
from basis_sharing.models.adapters import adapter_notes, without_adapter
from basis_sharing.models.file_checks import get_again, readable
from basis_sharing.models.gguf_files import check_gguf, gguf_in
from basis_sharing.models.hub import fetched, first_line
from basis_sharing.models.leftovers import (
    leftover_notes,
    refuse_missing,
    refuse_unusable,
    stored_tensors,
    untied_notes,
)
from basis_sharing.models.multimodal import auto_class
from basis_sharing.models.places import path_of, refuse_without_config
from basis_sharing.models.quiet import quiet
from basis_sharing.models.refusals import (
    config_fault,
    is_compressed,
    modelopt_method,
    quantization_method,
    refuse_encoders,
    refuse_other_tasks,
)
from basis_sharing.models.sizes import weight_file_bytes
from basis_sharing.models.vocabulary import check_tokenizer_files, check_vocabulary, refuse_without_vocabulary
from basis_sharing.models.weight_files import (
    check_weight_files,
    fingerprint_files,
    has_safetensors,
    has_weights,
    read_header,
    weight_files,
)
from basis_sharing.runtime.modeling_basis_sharing import mend

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_T = TypeVar("_T")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSource:
    """The source of a model that is not loaded yet.

    Attributes:
        given: The source as the user gave it; used in messages.
        kind: ``"folder"``, ``"gguf"`` or ``"hub"``.
        path: The folder; for ``"gguf"`` the folder that holds the file; None for the hub.
        gguf_file: Name of the GGUF file in that folder, for ``"gguf"`` only.
    """

    given: str
    kind: Literal["folder", "gguf", "hub"]
    path: Path | None
    gguf_file: str | None = None


@readable
def resolve(model: str | Path) -> ModelSource:
    """Return the source that a path or name denotes; uses no network.

    Args:
        model: A model folder, a folder with exactly one GGUF file and no safetensors, a ``.gguf`` file, either also as
            ``file://`` address, or an id ``org/name`` on the hub.

    Raises:
        ModelError: The path does not exist, or the folder holds no model.
    """
    given = str(model)
    path = path_of(given)
    if path.is_dir():
        gguf = None if has_safetensors(path) else gguf_in(path)
        if gguf is not None:
            return ModelSource(given, "gguf", path, gguf.name)
        refuse_without_config(given, path)
        return ModelSource(given, "folder", path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{given} is a file; give the model's folder or a .gguf file.")
        return ModelSource(given, "gguf", path.parent, path.name)
    if path.is_symlink():
        raise ModelError(f"{given} is a link to {path.readlink()}, which is not there; give the folder itself.")
    if isinstance(model, Path) or path.suffix == ".gguf" or not _HUB_ID.fullmatch(given):
        raise ModelError(f"{given} does not exist; give a model folder, a .gguf file or an id on the Hugging Face Hub.")
    return ModelSource(given, "hub", None)


def load_config(source: ModelSource) -> PreTrainedConfig:
    """Load the configuration of a causal language model, or of a multimodal model with one inside.

    Raises:
        ModelError: It cannot be found or read, or is that of another model.
    """
    folder = _fetch(source)
    if source.gguf_file is None:
        refuse_other_tasks(source.given, _config_json(source))
    else:
        check_gguf(folder / source.gguf_file)
    with quiet():
        config: PreTrainedConfig = _guard(
            source, "configuration", lambda: AutoConfig.from_pretrained(folder, **_gguf(source))
        )
    refuse_encoders(source.given, config)
    return config


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    folder = _fetch(source)
    if source.gguf_file is None:
        check_tokenizer_files(folder)
    else:
        check_gguf(folder / source.gguf_file)
    with quiet():
        try:
            tokenizer: PreTrainedTokenizerBase = _guard(
                source, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **_gguf(source))
            )
        except ModelError:
            if source.gguf_file is None:
                refuse_without_vocabulary(source.given, folder)
            raise
    check_vocabulary(source.given, tokenizer)
    return tokenizer


def load_skeleton(source: ModelSource) -> PreTrainedModel:
    """Return a model on the meta device, built from its configuration alone.

    Raises:
        ModelError: As :func:`load_config`.
    """
    config = load_config(source)
    dtype = _stored_dtype(source, config)

    def build() -> PreTrainedModel:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype)
        return model.eval()

    with quiet():
        return _guard(source, "configuration", build)


def load_model(source: ModelSource, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model as :func:`load_with_notes` does, and issue its notes as warnings.

    Raises:
        ModelError: As :func:`load_with_notes`.
    """
    model, notes = load_with_notes(source, dtype)
    for note in notes:
        warnings.warn(f"{source.given}: {note}", ModelWarning, stacklevel=2)
    return model


def load_with_notes(source: ModelSource, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, list[str]]:
    """Load a model, dense or compressed by this package, onto the CPU in evaluation mode.

    Args:
        source: What :func:`resolve` returned.
        dtype: Dtype of the weights in memory; None: the checkpoint's own (float32 for GGUF).

    Returns:
        The model, and notes about what its folder holds and the model does not: sentences for the reader of a result.

    Raises:
        ModelError: A file is missing or damaged, a weight is missing or not finite, weights are quantized and the
            configuration does not say how, or the model is not a causal language model.
    """
    config = load_config(source)
    folder = _fetch(source, weights=True)
    path = folder if source.gguf_file is None else folder / source.gguf_file
    check_weight_files(path)
    stored, quantized = stored_tensors(weight_files(path)), _says_how_quantized(source)
    refuse_unusable(source.given, stored, quantized=quantized)
    arguments: dict[str, Any] = {"config": config, "dtype": dtype or "auto", **_gguf(source), **without_adapter(folder)}
    if source.gguf_file is not None:
        arguments["dtype"] = dtype or torch.float32
        if hasattr(transformers, "GgufConfig"):  # versions without it always dequantize
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto_class(config).from_pretrained(
            folder, output_loading_info=True, **arguments
        )
        return loaded

    with quiet():
        model, info = _guard(source, "weights", load)
    refuse_missing(source.given, path, sorted(info["missing_keys"]), stored)
    notes = leftover_notes(source.given, model, stored, info["unexpected_keys"], quantized=quantized)
    notes += [*untied_notes(model), *(adapter_notes(folder) if source.gguf_file is None else ())]
    if hasattr(model.config, "transformers_weights"):
        del model.config.transformers_weights  # a name of these files, not of those that are written
    check_finite(model)
    mend(model)
    return model.eval(), notes


def check_finite(model: nn.Module) -> None:
    """Check that every parameter is finite.

    Raises:
        ModelError: A parameter holds NaN or infinity; the message names the first one.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0 or not parameter.is_floating_point():
            continue
        low, high = torch.aminmax(parameter.detach())  # propagates NaN without a mask of the parameter's size
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(
                f"The weight {name} holds NaN or infinite values: the model is damaged, use a whole copy of it."
            )


def local_folder(source: ModelSource) -> Path | None:
    """Return the folder that holds a model's small files, fetched from the hub if need be; None for GGUF files.

    Raises:
        ModelError: It cannot be fetched.
    """
    return None if source.gguf_file is not None else _fetch(source)


def refuse_compressed(source: ModelSource) -> None:
    """Refuse models that are already compressed or quantized, as far as configuration and headers of weights tell.

    Raises:
        ModelError: The model is; the message names the method.
    """
    if source.gguf_file is not None:
        return  # dequantized while loading
    config = _config_json(source)
    if is_compressed(config):
        raise ModelError(f"{source.given} is already compressed by basis-sharing; compress the original instead.")
    method = quantization_method(config) or modelopt_method(_fetch(source))
    if method is not None:
        raise ModelError(f"{source.given} is quantized with {method}; compress the original weights instead.")
    if source.path is not None and has_weights(source.path):
        refuse_unusable(source.given, stored_tensors(weight_files(source.path)), quantized=False)


def named_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of a name such as ``"bfloat16"``; None for ``"auto"``."""
    if name == "auto":
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def read_in_place(source: ModelSource, dtype: torch.dtype | None) -> bool:
    """Return whether weights loaded in ``dtype`` (None: as stored) are memory-mapped pages of their files.

    Raises:
        ModelError: The configuration or the weight files cannot be read.
    """
    if source.gguf_file is not None:
        return False
    files = weight_files(_fetch(source, weights=True))
    stored = {
        _DTYPES.get(entry["dtype"])
        for file in files
        if file.suffix == ".safetensors"
        for entry in read_header(file).values()
    }
    return stored == {dtype or _stored_dtype(source, load_config(source))}


def stored_bytes(source: ModelSource) -> int:
    """Return the bytes of a model's weight files.

    Raises:
        ModelError: The weights cannot be found or fetched.
    """
    folder = _fetch(source, weights=True)
    return weight_file_bytes(folder / source.gguf_file if source.gguf_file else folder)


def fingerprint(source: ModelSource) -> str:
    """Return 32 hexadecimal digits that identify a model's configuration and weights, independent of their location.

    Raises:
        ModelError: Files are missing or damaged.
    """
    folder = _fetch(source, weights=True)
    if source.gguf_file is not None:
        return fingerprint_files((folder / source.gguf_file,), {})
    return fingerprint_files(weight_files(folder), _config_json(source))


def _guard(source: ModelSource, what: str, action: Callable[[], _T]) -> _T:
    """Return the result of an action of transformers, and turn any error into a one-sentence :class:`ModelError`."""
    try:
        return action()
    except ImportError as error:
        if source.gguf_file is not None:
            raise ModelError(
                f"Reading {source.given} needs the package gguf; install it with pip install gguf."
            ) from error
        raise ModelError(f"{source.given} needs a package that is not installed: {first_line(error)}.") from error
    except MemoryError as error:
        raise ModelError(f"{source.given} does not fit into memory; use a machine with more of it.") from error
    except Exception as error:  # other libraries raise anything on damaged input
        reason = first_line(error)
        if "ignore_mismatched_sizes" in reason:  # transformers prints the shapes above it, where nobody sees them
            reason = "a weight in its files has another shape than its config.json says"
        raise ModelError(f"The {what} of {source.given} cannot be loaded: {reason}.") from error


def _fetch(source: ModelSource, weights: bool = False) -> Path:
    """Return the local folder of a model; for the hub, download the configuration (and weights) unless cached."""
    return source.path if source.path is not None else fetched(source.given, weights=weights)


@readable
def _config_json(source: ModelSource) -> dict[str, Any]:
    folder = _fetch(source)
    file = folder / "config.json"
    refuse_without_config(source.given, folder)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{os.fspath(file)} is not valid JSON: {get_again(file)}.") from error
    fault = config_fault(config)
    if fault is not None:
        raise ModelError(f"{os.fspath(file)} {fault}: {get_again(file)}.")
    checked: dict[str, Any] = config
    return checked


def _says_how_quantized(source: ModelSource) -> bool:
    return source.gguf_file is not None or quantization_method(_config_json(source)) is not None


def _stored_dtype(source: ModelSource, config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype in which :func:`load_model` loads weights: the configuration's, else that of the first file."""
    if source.gguf_file is not None:
        return torch.float32
    declared: torch.dtype | None = config.dtype
    if declared is not None:
        return declared
    if source.path is not None:
        for file in weight_files(source.path):
            if file.suffix == ".safetensors":
                for entry in read_header(file).values():
                    if entry["dtype"] in _DTYPES:
                        return _DTYPES[entry["dtype"]]
    return torch.float32


def _gguf(source: ModelSource) -> dict[str, str]:
    return {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
