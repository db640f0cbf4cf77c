"""Whether the weights of a model lie on a grid of few numbers already, as those of a quantized file do."""

from typing import Any

import torch

from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder

_GROUP, _NUMBERS = 32, 16  # what 4-bit formats have in common
_PROJECTIONS, _OUTPUTS = 12, 64  # that are looked at
_MOST = 0.9


def lies_on_a_grid(model: Any, decoder: Decoder) -> bool:
    """Return whether nearly all groups of 32 inputs of an output have at most 16 different weights."""
    step = max(1, len(decoder.projections) // _PROJECTIONS)
    few = []
    for p in decoder.projections[::step]:
        rows = weight(model, p).T[:_OUTPUTS].detach()
        whole = rows[:, : rows.shape[1] // _GROUP * _GROUP].reshape(-1, _GROUP).sort(-1).values
        few.append(((whole[:, 1:] != whole[:, :-1]).sum(-1) < _NUMBERS).float())
    return bool(torch.cat(few).mean() > _MOST)


def grid_note(model: Any, decoder: Decoder) -> list[str]:
    """Return a sentence for models whose weights are to be rounded and lie on a grid already; none for others."""
    if not lies_on_a_grid(model, decoder):
        return []
    return [
        f"The weights lie on a grid of {_NUMBERS} numbers per {_GROUP} inputs already, as in a file of 4 bits: "
        "rounding them again loses less than it would with the original weights."
    ]
