"""Multimodal pico models: language models with a vision tower, as transformers builds them, and pictures for them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from pico import VOCAB, pico_tokenizer, randomize

IMAGE = VOCAB - 1
"""The token whose states are those of a part of the picture."""

_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN = {"image_token_id": IMAGE, "video_token_id": 253, "vision_start_token_id": 252, "vision_end_token_id": 251}


def _rope(*section: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}}


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**_TEXT, "sliding_window": 32, "query_pre_attn_scalar": 16},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": 255,
        "eoi_token_index": 254,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, **_rope(2, 2, 4)},
        "vision_config": {**_QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [0]},
        **_QWEN,
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, **_rope(4, 2, 2)},
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_QWEN,
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "vision_config": {**_QWEN_VISION, "num_position_embeddings": 16},
        **_QWEN,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16},
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
    },
    "llama4": {
        "text_config": {
            **_TEXT,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 64,
        },
        "vision_config": {
            **_VISION,
            "intermediate_size": 128,
            "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
        "image_token_index": IMAGE,
        "boi_token_index": 255,
        "eoi_token_index": 254,
    },
    "smolvlm": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _VISION,
        "image_token_id": IMAGE,
        "scale_factor": 2,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "num_hidden_layers": 2, "model_type": "clip_vision_model", "projection_dim": 32},
        "image_token_index": IMAGE,
    },
}
"""Settings by model type."""


def build_multimodal(name: str, seed: int = 0) -> PreTrainedModel:
    """Build a multimodal pico model with seeded random weights, float32, in evaluation mode."""
    config = AutoConfig.for_model(name, **CONFIGS[name])
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    return model.eval()


def save_multimodal(name: str, folder: Path) -> Path:
    """Save a multimodal pico model with its tokenizer as a Hugging Face folder, and return the folder."""
    build_multimodal(name).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def picture(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a picture of noise between a few words, as the processor of a model would give it to the model."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    tokens, extra = 4, {}
    if name.startswith("qwen"):
        pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=generator)  # patches of two equal frames
        extra = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    elif name == "smolvlm":
        pixels = pixels[None]
    elif name == "mistral3":
        extra = {"image_sizes": torch.tensor([[16, 16]])}
    elif name == "llava":
        tokens = 16
    ids = torch.tensor([[10, 20, 252, *[IMAGE] * tokens, 30, 40, 50]])
    if name == "gemma3":
        extra = {"token_type_ids": (ids == IMAGE).int()}
    elif name.startswith("qwen"):
        extra |= {"mm_token_type_ids": (ids == IMAGE).int()}
    return {"input_ids": ids, "pixel_values": pixels, **extra}
