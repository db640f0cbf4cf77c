"""Calibration text sampled from the model itself (source ``self``)."""

import random
from typing import Any

import torch
from torch import Tensor

from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.models.caches import cache_input, cache_of
from basis_sharing.run.progress import Progress, ProgressCallback, silent

_BATCH = 8


@torch.no_grad()
def write_windows(
    model: Any, tokenizer: Any, windows: int, length: int, seed: int, progress: ProgressCallback = silent
) -> Tensor:
    """Return token windows sampled from a model at temperature 1, without top-k or top-p filtering.

    Every window starts with the beginning-of-sequence token, or with a random token if there is none, and continues
    after end-of-sequence tokens, as in training on packed documents. No global random state is used or changed. The
    same seed gives the same windows on one machine; on another one they may differ if its logits do.

    Args:
        model: Causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        windows: Number of windows.
        length: Tokens per window, the first one included.
        seed: Seed of the sampling.
        progress: Receives one event per token position of a batch, counted in tokens.

    Returns:
        Token ids, int64, shape ``[windows, length]``, on the CPU.

    Raises:
        CorpusError: The windows are longer than the model's maximum number of positions.
        NumericalError: The model computes NaN or infinity.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise CorpusError(f"the model cannot write windows of {length} tokens: set --length to its {limit} or fewer.")
    ids = torch.empty(windows, length, dtype=torch.int64)
    ids[:, 0] = _first_tokens(tokenizer, config.vocab_size, windows, seed)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for batch in ids.split(_BATCH):
        cache = None
        for position in range(1, length):
            last = batch[:, position - 1 : position].to(model.device)
            output = model(input_ids=last, use_cache=True, **cache_input(model, cache))
            cache = cache_of(output)
            probabilities = output.logits[:, -1].float().softmax(-1).cpu()
            if not probabilities.isfinite().all():
                raise NumericalError(
                    "the model computes NaN or infinity while it writes its calibration text: load it in float32 "
                    "(--dtype float32), or check its weights."
                )
            batch[:, position] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            done += len(batch)
            progress(Progress("writing calibration text", done, windows * (length - 1), "tokens"))
    return ids


def _first_tokens(tokenizer: Any, vocab_size: int, windows: int, seed: int) -> Tensor:
    """Return the first token of every window, shape ``[windows]``."""
    if tokenizer.bos_token_id is not None:
        return torch.full((windows,), tokenizer.bos_token_id)
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(len(tokenizer), vocab_size)) if token not in special]
    return torch.tensor(random.Random(seed).choices(ordinary, k=windows))
