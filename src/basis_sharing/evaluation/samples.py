"""Greedy continuations of prompts, without a chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_sharing.errors import RecipeError
from basis_sharing.models.caches import cache_input, cache_of
from basis_sharing.results.comparison import Continuation

DEFAULT_PROMPTS = (
    "The capital of France is",
    "To make a cup of tea, first",
    "The most important thing about a bridge is that",
)
NEW_TOKENS = 40


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts in a file, one per line.

    Raises:
        RecipeError: The file cannot be read, is not UTF-8, or holds no prompt or an empty line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RecipeError(f"the prompts {path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the prompts {path} are not UTF-8 text: save them as such.") from None
    if not lines:
        raise RecipeError(f"the prompts {path} are empty: write one prompt a line.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise RecipeError(f"line {number} of the prompts {path} is empty: write a prompt there, or remove it.")
    return tuple(lines)


def encode_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[Tensor]:
    """Return the tokens of prompts with the tokenizer's defaults, each of shape ``[tokens]``.

    Raises:
        RecipeError: A prompt has no token, or too many for the model to continue.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = []
    for number, prompt in enumerate(prompts, start=1):
        ids = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.int64)
        if not len(ids):
            raise RecipeError(f"prompt {number} ({prompt!r}) has no tokens: write a word.")
        if limit and len(ids) + new_tokens > limit:
            raise RecipeError(
                f"prompt {number} has {len(ids)} tokens, and with {new_tokens} new ones that is more than the {limit} "
                "this model can read: shorten it, or ask for fewer with --new-tokens."
            )
        encoded.append(ids)
    return encoded


@torch.no_grad()
def continue_prompt(model: Any, tokenizer: Any, prompt: Tensor, new_tokens: int) -> Continuation:
    """Return a model's greedy continuation of a prompt.

    ``model.generate`` is not used, because it applies the model's ``generation_config``, such as a penalty on
    repetitions, which hides changes of the model itself.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        prompt: Tokens of the prompt, shape ``[tokens]``.
        new_tokens: Largest number of new tokens.
    """
    ends = _end_tokens(model, tokenizer)
    ids, cache, written, ended = prompt[None].to(model.device), None, list[int](), False
    while len(written) < new_tokens and not ended:
        output = model(input_ids=ids, use_cache=True, **cache_input(model, cache))
        cache, ids = cache_of(output), output.logits[:, -1:].argmax(-1)
        written.append(int(ids))
        ended = written[-1] in ends
    special = ends | set(tokenizer.all_special_ids)
    return Continuation(
        text=tokenizer.decode([token for token in written if token not in special]),
        tokens=sum(token not in special for token in written),
        ended=ended,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the end-of-text tokens of the model and of the tokenizer."""
    named = model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    return (ends | {tokenizer.eos_token_id}) - {None}
