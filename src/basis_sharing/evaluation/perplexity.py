"""Perplexity and bits per byte of a model on non-overlapping windows of text."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.placing import placed
from basis_sharing.calibration.windows import EvaluationText, evaluation_windows, window_length
from basis_sharing.errors import NumericalError
from basis_sharing.models.families import needs_bos
from basis_sharing.models.source import dtype_name
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import Progress, ProgressCallback, silent

DEFAULT_TEXT = "python-docs:heldout"


def prepare_text(model: Any, tokenizer: Any, text: str, *, windows: int | None, length: int | None) -> EvaluationText:
    """Return a text as token windows for the evaluation of a model.

    Raises:
        CorpusError: The text cannot be read or is shorter than one window.
    """
    return evaluation_windows(
        text,
        tokenizer=tokenizer,
        windows=windows,
        length=window_length(model.config, length),
        vocab_size=model.config.get_text_config().vocab_size,
        bos=needs_bos(model.config),
    )


@torch.no_grad()
def measure(
    model: Any,
    text: EvaluationText,
    *,
    device: torch.device | None = None,
    stage: str = "evaluating",
    progress: ProgressCallback = silent,
) -> Perplexity:
    """Return the perplexity of a model on prepared windows.

    Args:
        model: The model.
        text: The windows.
        device: Device on which the whole model runs; None: the model's device.
        stage: Name of the stage in progress events.
        progress: Receives one event per window.

    Returns:
        The perplexity with everything needed to repeat it.

    Raises:
        NumericalError: The model computes NaN or infinity.
    """
    losses = []
    with placed(model, device or model.device):
        for index in range(len(text.input_ids)):
            losses.append(window_loss(window_logits(model, text, index), text, index))
            progress(Progress(stage, index + 1, len(text.input_ids), "windows"))
    return from_losses(losses, text, model.dtype)


def window_logits(model: Any, text: EvaluationText, index: int) -> Tensor:
    """Return a model's logits for the predicted tokens of one window, shape ``[length - 1, vocabulary]``."""
    logits: Tensor = model(input_ids=text.input_ids[index][None].to(model.device), use_cache=False).logits[0, :-1]
    return logits


def window_loss(logits: Tensor, text: EvaluationText, index: int) -> float:
    """Return the negative log-likelihood of one window, summed over its predicted tokens, in nats.

    Raises:
        NumericalError: The loss is NaN or infinite.
    """
    targets = text.input_ids[index, 1:].to(logits.device)
    loss = sum(
        nn.functional.cross_entropy(part.float(), target, reduction="sum").item()
        for part, target in zip(logits.split(512), targets.split(512), strict=True)
    )
    if not math.isfinite(loss):
        raise NumericalError(
            f"the model computes NaN or infinity on window {index + 1} of {text.source}: evaluate it in float32 "
            "(--dtype float32), or compress less."
        )
    return loss


def from_losses(losses: Sequence[float], text: EvaluationText, dtype: torch.dtype) -> Perplexity:
    """Return the perplexity from the summed losses of all windows, in nats."""
    windows, length = text.input_ids.shape
    tokens = windows * (length - 1)
    mean = sum(losses) / tokens
    bytes_per_token = text.bytes_per_token
    return Perplexity(
        text=text.source,
        fingerprint=text.fingerprint,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        nats_per_token=mean,
        window_nats=tuple(loss / (length - 1) for loss in losses),
        bits_per_byte=None if bytes_per_token is None else mean / math.log(2) / bytes_per_token,
        windows=windows,
        length=length,
        tokens=tokens,
        bos=text.bos,
        dtype=dtype_name(dtype),
        notes=text.notes,
    )
