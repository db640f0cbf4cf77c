"""Agreement of the next-token distributions of two models: KL divergence and most probable tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_sharing.evaluation.intervals import mean_interval
from basis_sharing.results.comparison import Agreement, Disagreement, Interval

_CHUNK = 512
_CONTEXT = 16


@dataclass(frozen=True)
class Divergence:
    """Comparison of two models' predictions in one window; all tensors on the CPU, of shape ``[positions]``.

    Attributes:
        kl: KL divergence (first || second), in nats.
        first: The first model's most probable token.
        first_probability: Its probability.
        second: The second model's most probable token.
        second_probability: Its probability.
    """

    kl: Tensor
    first: Tensor
    first_probability: Tensor
    second: Tensor
    second_probability: Tensor


def divergence(first: Tensor, second: Tensor, chunk: int = _CHUNK) -> Divergence:
    """Return the divergence of the logits of two models for one window.

    Args:
        first: Logits of the first model, any dtype, shape ``[positions, vocabulary]``.
        second: Logits of the second model, same shape.
        chunk: Positions whose fp32 probabilities are in memory at a time; does not change the result.
    """
    pairs = zip(first.split(chunk), second.to(first.device).split(chunk), strict=True)
    parts = [_divergence(*pair) for pair in pairs]
    return Divergence(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _divergence(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    first, second = first.float().log_softmax(-1), second.float().log_softmax(-1)
    kl = nn.functional.kl_div(second, first, reduction="none", log_target=True).sum(-1)
    first_log, first_token = first.max(-1)
    second_log, second_token = second.max(-1)
    # The divergence of nearly equal distributions may be slightly negative by rounding.
    return kl.clamp_min(0), first_token, first_log.exp(), second_token, second_log.exp()


def summarize(windows: Sequence[Divergence], input_ids: Tensor, tokenizer: Any, most: int) -> Agreement:
    """Return the agreement of two models from the divergences of all windows.

    Args:
        windows: One divergence per window.
        input_ids: The windows, shape ``[windows, positions + 1]``.
        tokenizer: Tokenizer that decodes the tokens.
        most: Largest number of disagreements to keep.
    """
    kl = torch.stack([window.kl for window in windows]).double()
    same = torch.stack([window.first == window.second for window in windows]).double()
    window_kl, window_top1 = kl.mean(1).tolist(), same.mean(1).tolist()
    return Agreement(
        mean_kl=kl.mean().item(),
        kl_interval=_within(mean_interval(window_kl), 0.0, float("inf")),
        percentile_99_kl=float(np.quantile(kl.numpy(), 0.99)),
        top1=same.mean().item(),
        top1_interval=_within(mean_interval(window_top1), 0.0, 1.0),
        window_kl=tuple(window_kl),
        window_top1=tuple(window_top1),
        tokens=kl.numel(),
        disagreements=_disagreements(kl, windows, input_ids, tokenizer, most),
    )


def _disagreements(
    kl: Tensor, windows: Sequence[Divergence], input_ids: Tensor, tokenizer: Any, most: int
) -> tuple[Disagreement, ...]:
    values, places = kl.flatten().topk(min(most, kl.numel()))
    disagreements = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if value == 0:
            break
        index, position = divmod(place, kl.shape[1])
        window, ids = windows[index], input_ids[index]
        disagreements.append(
            Disagreement(
                window=index,
                position=position + 1,
                context=tokenizer.decode(ids[max(0, position + 1 - _CONTEXT) : position + 1]),
                token=tokenizer.decode(ids[position + 1 : position + 2]),
                first=tokenizer.decode(window.first[position : position + 1]),
                first_probability=window.first_probability[position].item(),
                second=tokenizer.decode(window.second[position : position + 1]),
                second_probability=window.second_probability[position].item(),
                kl=value,
            )
        )
    return tuple(disagreements)


def _within(interval: Interval | None, low: float, high: float) -> Interval | None:
    if interval is None:
        return None
    return Interval(low=max(interval.low, low), high=min(interval.high, high))
