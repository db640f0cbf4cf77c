"""The declared families of models; the structure of other models is detected."""

from types import MappingProxyType
from typing import TYPE_CHECKING

from basis_sharing.models.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PAPER = "the Basis Sharing paper (arXiv 2410.03765)"
_AUTHORS_CONFIGS = "the Basis Sharing authors' published configurations"
_BY_ANALOGY = "by analogy with LLaMA: the paper does not treat this family"

_LLAMA_INPUTS = MappingProxyType(
    {
        "attention_in": {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"},
        "attention_out": {"o": "self_attn.o_proj"},
        "mlp_in": {"gate": "mlp.gate_proj", "up": "mlp.up_proj"},
        "mlp_hidden": {"down": "mlp.down_proj"},
    }
)
_LLAMA_SHARED = ("q", "k", "v", "gate", "up")

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    blocks="model.layers",
    inputs=_LLAMA_INPUTS,
    shared_roles=_LLAMA_SHARED,
    shared_roles_source=_PAPER,
)
MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    blocks="model.layers",
    inputs=_LLAMA_INPUTS,
    shared_roles=("q", "gate", "up"),
    shared_roles_source=_AUTHORS_CONFIGS,
)
OPT = Family(
    name="opt",
    model_types=("opt",),
    blocks="model.decoder.layers",
    inputs=MappingProxyType(
        {
            "attention_in": {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"},
            "attention_out": {"o": "self_attn.out_proj"},
            "mlp_in": {"up": "fc1"},
            "mlp_hidden": {"down": "fc2"},
        }
    ),
    shared_roles=("q", "k", "v", "up"),
    shared_roles_source=_PAPER,
)
GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    blocks="transformer.h",
    inputs=MappingProxyType(
        {
            "attention_in": {"qkv": "attn.c_attn"},
            "attention_out": {"o": "attn.c_proj"},
            "mlp_in": {"up": "mlp.c_fc"},
            "mlp_hidden": {"down": "mlp.c_proj"},
        }
    ),
    shared_roles=("qkv", "o", "up"),
    shared_roles_source=_PAPER,
)
QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    blocks="model.layers",
    inputs=_LLAMA_INPUTS,
    shared_roles=_LLAMA_SHARED,
    shared_roles_source=_BY_ANALOGY,
)
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    blocks="model.layers",
    inputs=_LLAMA_INPUTS,
    shared_roles=_LLAMA_SHARED,
    shared_roles_source=_BY_ANALOGY,
)
GEMMA = Family(
    name="gemma",
    model_types=("gemma", "gemma2", "gemma3_text"),
    blocks="model.layers",
    inputs=_LLAMA_INPUTS,
    shared_roles=_LLAMA_SHARED,
    shared_roles_source=_BY_ANALOGY,
    needs_bos=True,
)
PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    blocks="model.layers",
    inputs=MappingProxyType(
        {
            "attention_in": {"qkv": "self_attn.qkv_proj"},
            "attention_out": {"o": "self_attn.o_proj"},
            "mlp_in": {"gate_up": "mlp.gate_up_proj"},
            "mlp_hidden": {"down": "mlp.down_proj"},
        }
    ),
    shared_roles=("qkv", "gate_up"),
    shared_roles_source=_BY_ANALOGY,
)

FAMILIES = tuple(family for family in list(vars().values()) if isinstance(family, Family))
"""Every family declared above."""

_NEED_BOS = frozenset({"gemma3n_text", "gemma4_text", "gemma4_unified_text"})
"""Types whose structure is detected, but which need the beginning-of-sequence token as their relatives do."""
_BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(model_type: str) -> Family | None:
    """Return the declared family of a model type.

    Args:
        model_type: Value of ``config.model_type``.

    Returns:
        The family; None if none is declared, so that it has to be detected from the model.
    """
    return _BY_MODEL_TYPE.get(model_type)


def family_in(config: "PreTrainedConfig") -> Family | None:
    """Return the declared family of the language model that a configuration describes, alone or in a multimodal one."""
    return family_of(config.get_text_config().model_type)


def needs_bos(config: "PreTrainedConfig") -> bool:
    """Return whether the language model needs the beginning-of-sequence token at the start of every window."""
    model_type = config.get_text_config().model_type
    family = family_of(model_type)
    return model_type in _NEED_BOS or (family is not None and family.needs_bos)
