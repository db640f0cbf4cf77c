"""The forward sweep: statistics of all windows, computed one decoder block at a time.

One forward pass records the arguments that the model passes to its blocks besides the hidden states (masks, position
embeddings, ...). Each block is then run alone, on the stored outputs of the block before it. Only one block's
statistics and one copy of the hidden states are in memory at a time.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.calls import block_calls, fill_first_states, run_block, states_shape
from basis_sharing.blocks.placing import placed
from basis_sharing.blocks.states import states_like
from basis_sharing.calibration.moments import MomentAccumulator, Moments, Statistics
from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.durable import UNFINISHED
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.resume import ResumePoint


@torch.no_grad()
def sweep(
    model: Any,
    decoder: Decoder,
    input_ids: Tensor,
    statistics: Statistics,
    *,
    dtype: torch.dtype,
    stage: str = "calibrating",
    folder: Path | None = None,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[tuple[int, dict[str, Moments]]]:
    """Yield the statistics of the inputs of each block on calibration windows, in depth order.

    Args:
        model: Causal language model, dense or compressed; it is not changed.
        decoder: Its structure.
        input_ids: Token windows, shape ``[windows, length]``.
        statistics: The statistics to collect for each distinct input.
        dtype: Dtype of activations and weights during the sweep.
        stage: Name of the stage in progress events.
        folder: Where the hidden states between blocks are saved from time to time. An interrupted sweep of the same
            model, text and dtype resumes there and yields only the remaining blocks.
        machine: Where the blocks run; None: where the model is. Several processes divide the windows among them and
            yield the statistics of all.
        progress: Receives one event per block and window.

    Yields:
        Block index, and the moments of each distinct input of that block by name. A resumed sweep does not repeat a
        block once the next one has been requested, so the caller must save the moments before that.

    Raises:
        NumericalError: An activation is NaN or infinite; names the projection that would read it.
        ModelError: A block is given arguments of another form for other tokens.
        CorpusError: There are fewer windows than processes.
    """
    machine = machine or Machine(model.device)
    input_ids = own_windows(input_ids, machine)
    with ExitStack() as stack:
        room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
        calls = block_calls(model, decoder, input_ids, folder=room, machine=machine)
        hidden = states_like(states_shape(model, decoder, input_ids).all, dtype, room / f"hidden{UNFINISHED}", machine)
        point = ResumePoint(folder and folder / f"states{UNFINISHED}", machine.processes)
        first = point.resume(hidden)
        if not first:
            fill_first_states(model, decoder, input_ids, hidden)
        done, total = first * len(input_ids), len(decoder.blocks) * len(input_ids)
        for index, path in list(enumerate(decoder.blocks))[first:]:
            block, call = model.get_submodule(path), calls.of(index, machine.device, dtype)
            projections = [p for p in decoder.projections if p.block == index]
            with placed(block, machine.device, dtype), _watched(block, path, projections, statistics) as accumulators:
                for window in range(len(input_ids)):
                    hidden[window] = run_block(block, hidden[window].to(machine.device), call(window))
                    done += 1
                    progress(Progress(stage, done, total, "windows x blocks"))
            yield index, {name: accumulator.finish(machine.processes) for name, accumulator in accumulators.items()}
            point.reach(index + 1, hidden)


def own_windows(input_ids: Tensor, machine: Machine) -> Tensor:
    """Return this process's share of the windows.

    Raises:
        CorpusError: There are fewer windows than processes.
    """
    processes = machine.processes
    if len(input_ids) < processes.count:
        raise CorpusError(
            f"{len(input_ids)} calibration windows cannot be divided among {processes.count} processes: use more "
            "windows (--windows), or fewer processes."
        )
    return input_ids[processes.index :: processes.count]


@contextmanager
def _watched(
    block: nn.Module, path: str, projections: list[Projection], statistics: Statistics
) -> Iterator[dict[str, MomentAccumulator]]:
    """Yield an accumulator for each distinct input of a block, attached to the first projection that reads it."""
    accumulators: dict[str, MomentAccumulator] = {}
    handles = []
    for projection in projections:
        if projection.input in accumulators:
            continue
        module = block.get_submodule(projection.name.removeprefix(f"{path}."))
        device = next(module.parameters()).device
        accumulator = MomentAccumulator(projection.d_in, statistics, device)
        accumulators[projection.input] = accumulator

        def hook(
            _: nn.Module,
            args: tuple[Tensor, ...],
            accumulator: MomentAccumulator = accumulator,
            name: str = projection.name,
        ) -> None:
            if not accumulator.add(args[0].flatten(0, -2)):
                raise NumericalError(
                    f"the input of {name} contains NaN or infinity: calibrate in float32 (--calibration-dtype float32) "
                    "or check the model's weights."
                )

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield accumulators
    finally:
        for handle in handles:
            handle.remove()
