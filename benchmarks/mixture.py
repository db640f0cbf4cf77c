"""A small mixture of experts with weights that have learnt something, for benchmarks: none is to be had as a package.

``python benchmarks/mixture.py FOLDER`` trains Qwen3-MoE's architecture (4 blocks of 32 experts, four per token, 11 M
parameters, an eighth of the widths of Qwen3-30B-A3B) from a seed on WikiText-2's training text and a sample of web
text, and writes it as a Hugging Face folder with its own tokenizer: half an hour on two cores. ``FOLDER-half`` is the
same run after half of its steps. The text that models are tested on is never read.
"""

import argparse
import gzip
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils import logging

from common import DATA, need_data

VOCABULARY, LENGTH, BATCH, WARM_UP, RATE = 4096, 256, 8, 100, 1.5e-3


def training_text() -> list[str]:
    """Return the texts to train on."""
    names = ("wikitext2/wiki.train.tokens.gz", "c4/exllamav3_c4.utf8.gz")
    return [gzip.decompress((DATA / name).read_bytes()).decode("utf-8") for name in names]


def trained_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that was trained on texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def batches(tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield batches of windows that begin anywhere, shape ``[BATCH, LENGTH]``."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])


def new_model() -> Qwen3MoeForCausalLM:
    """Return the model before training."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        output_router_logits=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen3MoeForCausalLM(config)


def train(folder: Path, steps: int) -> None:
    """Train the model, and write it and its half-trained self."""
    texts = training_text()
    tokenizer = trained_tokenizer(texts)
    tokens = torch.cat([torch.tensor(tokenizer(text)["input_ids"]) for text in texts])
    model = new_model()
    print(f"{model.num_parameters() / 1e6:.1f} M parameters, {len(tokens) / 1e6:.1f} M tokens of text", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    start, total = time.monotonic(), 0.0
    for step, ids in enumerate(batches(tokens, steps), start=1):
        rate = RATE * min(step / WARM_UP, 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 50 == 0:
            print(f"{step} of {steps}: loss {total / 50:.3f}, {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0
        if step in (steps // 2, steps):
            room = folder if step == steps else folder.with_name(f"{folder.name}-half")
            model.save_pretrained(room)
            tokenizer.save_pretrained(room)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2400, help=f"steps of {BATCH * LENGTH} tokens")
    options = parser.parse_args()
    need_data()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    train(options.folder, options.steps)


if __name__ == "__main__":
    main()
