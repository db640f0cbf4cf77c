"""What planning and solving need of a pico model: its statistics on a few random windows."""

from functools import cache
from typing import Any

import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.treatments.base import Curves
from basis_sharing.weightings.loss import Loss
from pico import PICO

IDS = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))


def input_moments(model: Any, decoder: Decoder, ids: torch.Tensor = IDS) -> MomentStore:
    """Return the moments of all inputs."""
    store = MomentStore()
    store.fill(sweep(model, decoder, ids, Statistics(gram=True, abs_sum=True), dtype=torch.float32))
    return store


def all_moments(model: Any, decoder: Decoder, ids: torch.Tensor = IDS) -> MomentStore:
    """Return the moments of all inputs and of the loss gradients at all outputs."""
    store = MomentStore()
    store.fill(backward_sweep(model, decoder, ids, dtype=torch.float32))
    return store


def loss_weighting(model: Any, decoder: Decoder, ids: torch.Tensor = IDS) -> Loss:
    """Return the planner's weighting."""
    return Loss(moments=all_moments(model, decoder, ids))


def repeated(model: Any, decoder: Decoder, blocks: tuple[int, ...]) -> Loss:
    """Give some blocks of a model the same weights; return its weighting, with the same statistics for them."""
    first, *others = blocks
    for block in others:
        same = model.get_submodule(decoder.blocks[first]).state_dict()
        model.get_submodule(decoder.blocks[block]).load_state_dict(same)
    found = dict(backward_sweep(model, decoder, IDS, dtype=torch.float32))
    store = MomentStore()
    for block, moments in found.items():
        if block in others:
            moments = {n.replace(f".{first}.", f".{block}."): moment for n, moment in found[first].items()}
        store.put(block, moments)
    return Loss(moments=store)


@cache
def prepared(name: str) -> tuple[Any, Decoder, Loss, Curves]:
    """Return a pico model, its structure, the planner's weighting, and loss curves to fill; the same each time."""
    model = PICO[name]()
    decoder = describe(model).without_experts
    return model, decoder, loss_weighting(model, decoder), {}
