"""Language models inside multimodal ones: the class that loads them, their text stack, and what lies beside it."""

from collections.abc import Iterable, Sequence
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from basis_sharing.runtime.modeling_basis_sharing import auto_class_of


def class_name(model_type: str, architectures: Sequence[str]) -> str | None:
    """Return the class that a configuration describes, if it is a language model, alone or inside a multimodal one.

    Args:
        model_type: The ``model_type`` of the configuration.
        architectures: The ``architectures`` of the configuration; empty: the class for the type is taken.

    Returns:
        The name of the class; None for models that generate no text.
    """
    of_type = [name for names in _MAPPINGS for name in _listed(names.get(model_type, ()))]
    known = {name for names in _MAPPINGS for listed in names.values() for name in _listed(listed)}
    wanted: Iterable[str] = (name for name in architectures if name in known) if architectures else of_type
    return next(iter(wanted), None) if of_type else None


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the auto class of transformers that loads the model of a configuration.

    It is ``AutoModelForCausalLM`` for language models, and ``AutoModelForImageTextToText`` for those that see as well.
    """
    name = class_name(config.model_type, config.architectures or ())
    return getattr(transformers, auto_class_of(name) if name is not None else "AutoModelForCausalLM")


def auto_class_of_model(model: PreTrainedModel) -> Any:
    """Return the auto class of transformers that builds a model like this one."""
    return getattr(transformers, auto_class_of(type(model).__name__))


def is_multimodal(model: PreTrainedModel) -> bool:
    """Return whether a model's language model is only a part of it."""
    return model.config.get_text_config() is not model.config


def text_stack(model: PreTrainedModel) -> str:
    """Return the module path of the text decoder inside a multimodal model; empty for models of text alone."""
    if not is_multimodal(model):
        return ""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def towers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return what a multimodal model has beside its language model, by module path.

    These are vision and audio towers, and the projectors between them and the language model. Nothing of them is
    compressed. The result is empty for models of text alone.
    """
    stack = text_stack(model)
    found: dict[str, nn.Module] = {}

    def descend(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}{name}"
            if stack.startswith(f"{inner}."):
                descend(child, f"{inner}.")
            elif inner != stack and child is not head and any(True for _ in child.parameters()):
                found[inner] = child

    if stack:
        head = model.get_output_embeddings()
        descend(model, "")
    return found


_MAPPINGS: tuple[dict[str, Any], ...] = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
