"""Every decoder that transformers lists, tiny: configurations are made small by the names of their fields."""

import dataclasses
import inspect
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from pico import build

LAYERS = 4

_BY_VALUE = {
    260: "vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    256: "bos_token_id max_position_embeddings n_positions max_seq_len n_ctx context_length",
    257: "eos_token_id eod_token_id sep_token_id decoder_start_token_id cls_token_id",
    258: "pad_token_id",
    64: "hidden_size d_model n_embd word_embed_proj_dim",
    96: (
        "intermediate_size ffn_dim dff ffn_hidden_size intermediate_size_mlp dense_intermediate_size "
        "decoder_ffn_dim dim_ff"
    ),
    LAYERS: (
        "num_hidden_layers n_layer n_layers num_layers num_experts n_routed_experts num_local_experts "
        "moe_num_experts num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads "
        "decoder_layers decoder_attention_heads linear_num_heads linear_num_value_heads zero_expert_num "
        "conv_L_cache router_hidden_size"
    ),
    2: (
        "num_key_value_heads num_experts_per_tok swa_num_key_value_heads moe_topk moe_k index_n_heads "
        "linear_num_key_heads n_mamba_heads o_groups n_layers_per_attn_res_block expert_layer_period "
        "layer_group_size global_attn_every_n_layers sliding_window_pattern altup_num_inputs"
    ),
    1: (
        "n_group topk_group first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts "
        "moe_num_shared_experts mamba_n_groups n_groups n_input_layers n_output_layers"
    ),
    16: (
        "head_dim swa_head_dim kv_channels dim_head index_topk index_head_dim linear_head_dim "
        "linear_key_head_dim linear_value_head_dim sliding_window sliding_window_size window_size "
        "local_attention attention_window_size attention_chunk_size kv_lora_rank v_head_dim o_lora_rank "
        "qk_nope_head_dim mamba_d_head mamba_head_dim mamba_chunk_size chunk_size keep_window_size "
        "query_pre_attn_scalar global_head_dim rel_extent index_block_size block_size adapter_rank"
    ),
    8: (
        "qk_rope_head_dim rotary_dim mamba_d_state ssm_state_size state_size mamba_n_heads mamba_num_heads "
        "hidden_size_per_layer_input laurel_rank d_rel gated_norm_rank loop_gate_rank hc_lowrank "
        "mamba_dt_rank"
    ),
    24: "q_lora_rank",
    32: (
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size"
    ),
}
_SIZES = {name: value for value, names in _BY_VALUE.items() for name in names.split()}

_LATENT = {"num_key_value_heads": 4, "head_dim": 8}  # latent attention: rotary heads, one key per query
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 100,
        **{
            f"{part}_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **sizes}
            for part, sizes in {
                "patcher": {"intermediate_size": 96},
                "encoder": {"intermediate_size": 96, "hidden_size_global": 64},
                "decoder": {"intermediate_size": 96, "hidden_size_global": 64},
                "global": {"intermediate_size": 96},
            }.items()
        },
    },
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        **_LATENT,
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")},
        **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 24, "sliding_window": 16},
    },
    "falcon_h1": _MAMBA,
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [96] * 4,
    },
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16},
        **{"indexer_compress_ratio": 4, "ngram_vocab_size_base": 100, "split_ngram_parts": 2, "hc_count": 2},
    },
    "xglm": {"pad_token_id": 1},
    "xlnet": {"d_inner": 96},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_logits_to_keep": 0},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def decoders() -> list[str]:
    """Return the model types of all decoder-only text models in transformers' list of causal language models."""

    def is_decoder(model_type: str) -> bool:
        config = CONFIG_MAPPING[model_type]
        parts = getattr(config, "sub_configs", {})
        other = getattr(config, "is_encoder_decoder", False) or {"text_config", "vision_config", "text_encoder"} & set(
            parts
        )
        return not other and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return sorted(filter(is_decoder, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def settings_of(model_type: str) -> dict[str, Any]:
    """Return settings with which the configuration of a model type describes a tiny model."""
    config = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(config.__init__).parameters)
    if dataclasses.is_dataclass(config):
        known |= {field.name for field in dataclasses.fields(config)}
    small = {name: value for name, value in _SIZES.items() if name in known}
    if "kv_lora_rank" in known:
        small |= _LATENT
    return {**small, **_OWN.get(model_type, {})}


def tiny(model_type: str) -> PreTrainedModel:
    """Build a tiny model of a type, with seeded weights."""
    return build(model_type, **settings_of(model_type))
