"""Neurons in the order of the pivots of the projection that reads them, so that no input has to be put in order.

The neurons of a feed-forward layer can be permuted: the rows of the weights that compute them (gate, up) with their
biases, and the rows of the basis of the projection that reads them (down). With the pivots of this basis first, its
input is in order. Whether a layer allows it is not deduced from its architecture but tried.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from basis_sharing.blocks.calls import BlockCalls, run_block
from basis_sharing.blocks.placing import placed
from basis_sharing.models.family import SHARED, Decoder, Projection
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear, encode_pivots, input_order
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear
from basis_sharing.runtime.surgery import set_parameters
from basis_sharing.treatments.factors.common_order import Reordered

_TOLERANCE = 0.05
_COMPUTING = ("gate", "up", "gate_up")


@dataclass(frozen=True)
class Probe:
    """What blocks are run on to see what their projections read.

    Attributes:
        calls: The arguments of the blocks for one window.
        states: Hidden states, the input of every block.
        device: Device the blocks run on.
    """

    calls: BlockCalls
    states: Tensor
    device: torch.device


def neurons_in_order(model: Any, decoder: Decoder, entries: Sequence[Entry], probe: Probe) -> Iterator[Reordered]:
    """Yield the pivoted entries of ``down`` whose neurons can be permuted, with the weights that compute the neurons.

    A permutation is kept if every member then reads its input in the new order and the output of its block is the same.

    Args:
        model: The model with the factors.
        decoder: Its whole structure.
        entries: Its entries.
        probe: What the blocks are run on.
    """
    for entry in entries:
        if not isinstance(entry, Factors) or entry.form != "pivoted" or entry.order or entry.tensors:
            continue
        members = [decoder.projection_by_name[name] for name in entry.members]
        order = input_order(entry, members[0].d_in).long()
        if not all(p.role.removeprefix(SHARED) == "down" for p in members) or torch.equal(
            order, torch.arange(len(order))
        ):
            continue
        tensors: dict[str, Tensor] = {}
        computing = [_computing(decoder, p) for p in members]
        if not all(computing) or not all(_can_be_permuted(model, p) for found in computing for p in found):
            continue
        for projection in (p for found in computing for p in found):
            tensors |= _permuted(model, projection, order)
        first = encode_pivots(torch.arange(entry.rank), len(order))
        changed = replace(entry, pivots=first)
        if all(_is_exact(model, decoder, p, order, tensors, probe) for p in members):
            yield Reordered((changed,), tensors)


def _computing(decoder: Decoder, down: Projection) -> list[Projection]:
    """Return the projections that compute the neurons which a projection reads; none if they are not found."""
    parent = down.name.rpartition(".")[0]
    beside = [p for p in decoder.of_block(down.block) if p.name.rpartition(".")[0] == parent]
    found = [(p, p.role.removeprefix(SHARED)) for p in beside if p.role.removeprefix(SHARED) in _COMPUTING]
    sizes = all(p.d_out == down.d_in * (2 if role == "gate_up" else 1) for p, role in found)
    return [p for p, _ in found] if sizes else []


def _can_be_permuted(model: Any, projection: Projection) -> bool:
    """Return whether the outputs of a projection can be permuted: not if they are packed in few bits."""
    module = model.get_submodule(projection.name)
    return not (isinstance(module, RoundedLinear) or (isinstance(module, FactorizedLinear) and module.in_few_bits))


def _permuted(model: Any, projection: Projection, order: Tensor) -> dict[str, Tensor]:
    """Return weight and bias of a projection, dense or in factors, with its outputs (in both halves) in a new order."""
    path, module = projection.name, model.get_submodule(projection.name)
    if isinstance(module, FactorizedLinear):
        path, module = f"{path}.coeff", module.coeff
    rows = torch.cat([order + start for start in range(0, projection.d_out, len(order))])
    parameters = {name: value.detach() for name, value in module.named_parameters(recurse=False)}
    outputs = 1 if isinstance(module, Conv1D) else 0
    return {
        f"{path}.{name}": value.index_select(outputs if value.dim() == 2 else 0, rows.to(value.device))
        for name, value in parameters.items()
    }


def _is_exact(
    model: Any, decoder: Decoder, down: Projection, order: Tensor, tensors: Mapping[str, Tensor], probe: Probe
) -> bool:
    """Return whether the tensors change what a block computes only by the order in which ``down`` reads its input."""
    read, output = _run(model, decoder, down, probe)
    module = model.get_submodule(down.name)
    with _exchanged(model, tensors):
        kept, module.order = module.order, None
        try:
            new_read, new_output = _run(model, decoder, down, probe)
        finally:
            module.order = kept
    if read is None or new_read is None:
        return False  # an expert that no token of the window is sent to
    wanted = read[..., order.to(read.device)]
    change = (output - probe.states.to(output)).norm() if output.shape == probe.states.shape else output.norm()
    rounding = 2 * torch.finfo(model.dtype).eps * output.norm()
    return bool(
        (new_read - wanted).norm() <= _TOLERANCE * wanted.norm()
        and (new_output - output).norm() <= _TOLERANCE * change + rounding
    )


def _run(model: Any, decoder: Decoder, down: Projection, probe: Probe) -> tuple[Tensor | None, Tensor]:
    """Return what a projection reads, and the output of its block, in fp32."""
    block, inputs = model.get_submodule(decoder.blocks[down.block]), list[Tensor]()
    hook = model.get_submodule(down.name).register_forward_pre_hook(lambda _, args: inputs.append(args[0].float()))
    try:
        with torch.no_grad(), placed(block, probe.device):
            call = probe.calls.of(down.block, probe.device, model.dtype)(0)
            output = run_block(block, probe.states.to(probe.device), call).float()
    finally:
        hook.remove()
    return (inputs[0] if inputs else None), output


@contextmanager
def _exchanged(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Exchange parameters of a model inside the context."""
    held = {name: model.get_parameter(name) for name in tensors}
    set_parameters(model, {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()})
    try:
        yield
    finally:
        set_parameters(model, held)
