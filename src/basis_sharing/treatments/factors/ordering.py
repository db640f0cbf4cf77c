"""The stage of a run that brings the inputs of pivoted factors in order, so that they are read in contiguous slices."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from basis_sharing.blocks.calls import block_calls, fill_first_states, states_shape
from basis_sharing.models.family import Projection
from basis_sharing.run.durable import write_whole
from basis_sharing.run.progress import Progress
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.layers_basis_sharing import kind_of
from basis_sharing.runtime.modeling_basis_sharing import declare_ties
from basis_sharing.runtime.surgery import set_parameters
from basis_sharing.treatments.factors.common_order import Reordered, common_orders
from basis_sharing.treatments.factors.neurons import Probe, neurons_in_order
from basis_sharing.treatments.factors.side_by_side import side_by_side
from basis_sharing.treatments.stage import Execute, errors_of, replaced_entries

_TOKENS = 64


class OrderInputs:
    """Give pivoted factors that read one input a common order, and put the neurons that ``down`` reads in its order.

    Args:
        execute: The stage that carries out the plan; its records get the new entries.
        pivoted: Whether factors are pivoted; plain ones read their inputs in any order.
        join: Whether bases that multiply one input are stored side by side. Adapters cannot be put on such bases, which
            is why those of published methods are left as they are.
    """

    def __init__(self, execute: Execute, *, pivoted: bool, join: bool) -> None:
        self._execute = execute
        self._finders = [*([_common_orders, _neurons_in_order] if pivoted else []), *([_side_by_side] if join else [])]

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of choosing the orders, and of the factors in these orders."""
        if not self._finders:
            return
        readers: dict[tuple[int, str], list[Projection]] = {}
        for p in shapes.decoder.projections:
            readers.setdefault((p.block, p.input), []).append(p)
        several = [found for found in readers.values() if len(found) > 1]
        operations = sum(4 * found[0].d_in ** 2 * sum(min(p.d_in, p.d_out) for p in found) for found in several)
        memory = max((32 * sum(p.d_in * (p.d_in + p.d_out) for p in found) for found in several), default=0)
        kept = sum(p.d_in * p.d_out for p in shapes.decoder.projections) * shapes.dtype.itemsize
        seconds = shapes.seconds(4 * shapes.forward_over(_TOKENS, _TOKENS))
        seconds += 0.0 if shapes.speeds is None else operations / shapes.speeds.algebra
        yield Needs("ordering", seconds, memory, kept)

    def run(self, run: Run) -> None:
        """Find the orders, and install entries and factors in them."""
        execute = self._execute
        entries = {record.entry.owner: record.entry for record in execute.executed}
        done = 0
        with errors_of(execute.folder):
            for find in self._finders:
                for change in find(run, list(entries.values())):
                    file = None if execute.folder is None else execute.folder / f"order-{done:05d}.safetensors"
                    _install(run.model, change, file)
                    entries |= {entry.owner: entry for entry in change.entries}
                    done += 1
                    run.progress(Progress("ordering inputs", done, max(done, len(run.decoder.blocks)), "inputs"))
        execute.executed = replaced_entries(execute.executed, entries)


def _common_orders(run: Run, entries: Sequence[Entry]) -> Iterator[Reordered]:
    return common_orders(run.model, run.decoder, entries, run.machine.algebra)


def _neurons_in_order(run: Run, entries: Sequence[Entry]) -> Iterator[Reordered]:
    model, decoder = run.model, run.whole
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    states = torch.empty(states_shape(model, decoder, ids).all, dtype=model.dtype)
    fill_first_states(model, decoder, ids, states)
    probe = Probe(block_calls(model, decoder, ids), states[0], run.machine.device)
    return neurons_in_order(model, decoder, entries, probe)


def _side_by_side(run: Run, entries: Sequence[Entry]) -> Iterator[Reordered]:
    return side_by_side(run.model, run.decoder, entries)


def _install(model: Any, change: Reordered, file: Path | None) -> None:
    """Install reordered entries and their tensors in a model.

    Args:
        model: The model.
        change: The entries, with the parameters that change.
        file: Where the tensors are kept, so that the system can reclaim their memory; None: in memory.
    """
    like = {name: model.get_parameter(name) for name in change.tensors}
    tensors = {name: t.to(like[name].device, like[name].dtype).contiguous() for name, t in change.tensors.items()}
    if file is not None:
        write_whole(file, lambda partial: save_file(tensors, partial))
        tensors = load_file(file)
    parameters = {name: nn.Parameter(t, requires_grad=like[name].requires_grad) for name, t in tensors.items()}
    for entry in change.entries:
        basis = parameters.get(f"{entry.holder}.basis.weight")
        if basis is not None:
            parameters |= {f"{name}.basis.weight": basis for name in entry.members}
            holder = f"{entry.holder}.basis.weight"
            declare_ties(model, {f"{name}.basis.weight": holder for name in entry.members if name != entry.holder})
    set_parameters(model, parameters)
    for entry in change.entries:
        for name in entry.members:
            module = model.get_submodule(name)
            module.order, module.first = None, (entry.rows or (0, 0))[0]
            module.basis.out_features = len(module.basis.weight)
        kind_of(entry).finish(model, entry)
