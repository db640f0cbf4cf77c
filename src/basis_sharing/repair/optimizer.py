"""The optimizer of block and model training: AdamW with learning rates in proportion to the size of the weights."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

_WARM_UP = 0.05


def relative_adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """Return AdamW whose learning rate is ``rate`` times the root mean square of each parameter.

    Only the product of a basis and its coefficients has a fixed scale, so that no absolute rate suits both.
    """
    groups = [
        {"params": [p], "lr": rate * max(p.detach().float().square().mean().sqrt().item(), 1e-8)} for p in parameters
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Return the schedule of the rate over ``steps`` steps: a short linear rise, then half a cosine to a tenth."""
    rise = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return factor
