"""The optimizer of all training here: AdamW, with steps in proportion to the weights they change."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

_WARM_UP = 0.05


def relative_adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """Return AdamW whose step is ``rate`` times the root mean square of each parameter.

    A basis and its coefficients share out their scale between them at will, so that no absolute step suits both.
    """
    groups = [
        {"params": [p], "lr": rate * max(p.detach().float().square().mean().sqrt().item(), 1e-8)} for p in parameters
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor of the rate at each of ``steps`` steps: a short rise, then half a cosine down to a tenth."""
    rise = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return factor
