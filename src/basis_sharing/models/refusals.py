"""Refusal of unsupported models from their configuration, before any weight is read."""

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from basis_sharing.errors import ModelError
from basis_sharing.models.multimodal import class_name

_OTHER_MODALITIES = ("vision_config", "audio_config", "speech_config")
_ENCODER_DECODER = "{name} is an encoder-decoder ({described}); only decoder-only language models work."
_METHOD = "basis_sharing"
_QUANTIZATION = ("quantization_config", "compression_config")


def refuse_other_tasks(name: str, config: dict[str, Any]) -> None:
    """Refuse models of transformers that are no decoder-only language model, and have none for their text.

    Args:
        name: The model as the user gave it.
        config: The parsed ``config.json``.

    Raises:
        ModelError: The model is of another kind; the message names its class.
    """
    model_type = str(config.get("model_type"))
    architectures = config.get("architectures") or []
    described = ", ".join(map(str, architectures)) or f"a model of type {model_type!r}"
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{name} is {described}, whose model_type {model_type!r} this version of transformers does not know "
            "(code from a model's own repository is not run); update transformers or use another model."
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(_ENCODER_DECODER.format(name=name, described=described))
    causal = class_name(model_type, architectures) is not None
    if not architectures and model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        causal = causal and bool(config.get("is_decoder"))
    if causal:
        return
    if any(key in config for key in _OTHER_MODALITIES):
        raise ModelError(
            f"{name} is a multimodal model ({described}) that writes no text; only those with a causal language model "
            "inside work."
        )
    raise ModelError(f"{name} is not a causal language model ({described}); use a decoder-only one.")


def refuse_encoders(name: str, config: PreTrainedConfig) -> None:
    """Refuse encoder-decoders whose ``config.json`` does not call them so, but whose class or text part is one.

    Raises:
        ModelError: The model is one; the message names its class.
    """
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        described = ", ".join(config.architectures or ()) or f"a model of type {config.model_type!r}"
        raise ModelError(_ENCODER_DECODER.format(name=name, described=described))


def config_fault(config: object) -> str | None:
    """Return what keeps a parsed ``config.json`` from being a configuration; None if it may be one."""
    if not isinstance(config, dict):
        return "is not a model configuration"
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    kinds: dict[str, bool] = {
        "model_type": isinstance(config.get("model_type"), str),
        "architectures": architectures is None or (names is architectures and all(isinstance(n, str) for n in names)),
        **{key: isinstance(config.get(key) or {}, dict) for key in _QUANTIZATION},
    }
    wrong = [key for key, right in kinds.items() if not right]
    return f"does not say its {wrong[0]} as transformers does" if wrong else None


def quantization_method(config: dict[str, Any]) -> str | None:
    """Return the name of the method with which a checkpoint is quantized or compressed; None for a plain one."""
    section = next((config[key] for key in _QUANTIZATION if config.get(key)), None)
    if not section:
        return None
    return str(section.get("quant_method", "an unnamed method"))


def modelopt_method(folder: Path) -> str | None:
    """Return the name of the method that a file of ModelOpt beside a configuration names; None without that file."""
    file = folder / "hf_quant_config.json"
    if not file.is_file():
        return None
    try:
        return f"{json.loads(file.read_text(encoding='utf-8'))['quantization']['quant_algo']} (hf_quant_config.json)"
    except (ValueError, KeyError, TypeError):
        return "ModelOpt (hf_quant_config.json)"


def is_compressed(config: dict[str, Any]) -> bool:
    """Return whether a parsed ``config.json`` is that of a model compressed by this package."""
    return quantization_method(config) == _METHOD
