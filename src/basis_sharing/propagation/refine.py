"""Block refinement: the factors and norms of each block are trained towards what the original hands on.

Blocks are trained in depth order. Each reads the states of the compressed flow, as the blocks before it, trained
already, have made them; its target are the states that the original has at the same depth. So a block also makes up
for what was lost before it, which the planner, looking at one projection on the original's activations, cannot see.
One block is trained at a time.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from basis_sharing.calibration.placing import placed
from basis_sharing.calibration.states import states_like
from basis_sharing.calibration.sweep import BlockCall, block_calls, fill_first_states, run_block, states_shape
from basis_sharing.calibration.waypoint import Waypoint
from basis_sharing.durable import UNFINISHED, write_whole
from basis_sharing.errors import RecipeError
from basis_sharing.machine import Machine
from basis_sharing.models.family import Decoder
from basis_sharing.progress import Progress, ProgressCallback, silent
from basis_sharing.propagation.block_error import BlockError
from basis_sharing.propagation.block_training import BlockGain, BlockTask, train_block

SEGMENT = 512
EPOCHS = 2
_MOST_EPOCHS = 16
_HELD_OUT = 8  # one of so many segments
_FEWEST = 2 * _HELD_OUT
_STAGE = "refining"


@dataclass(frozen=True)
class Schedule:
    """How much is trained, so that an interrupted run is gone on with at the same pace.

    Attributes:
        segments: Number of segments of text, those to judge by included.
        epochs: Passes over them at most.
    """

    segments: int
    epochs: int

    @property
    def held_out(self) -> list[int]:
        """The segments to judge by."""
        return list(range(_HELD_OUT - 1, self.segments, _HELD_OUT))

    @property
    def training(self) -> list[int]:
        """The segments to learn from."""
        return [index for index in range(self.segments) if index % _HELD_OUT != _HELD_OUT - 1]


def refine(
    model: Any,
    original: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    minutes: float,
    dtype: torch.dtype,
    seed: int,
    error_of: Callable[[int], BlockError] = lambda _: BlockError(),
    folder: Path | None = None,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> tuple[Schedule, list[BlockGain]]:
    """Train the blocks of a compressed model, one after the other; shapes, ranks and sharing stay as they are.

    A basis that projections of several blocks share is not trained: what suits one block would spoil another.

    Args:
        model: Compressed model; its parameters are replaced.
        original: The model it was made from.
        decoder: The structure of both.
        input_ids: Windows of text, shape ``[windows, length]``; they are cut into segments of 512 tokens.
        minutes: How long it may take, about. The first steps are timed, then it is settled how much text is used.
        dtype: Dtype of activations and products; weights and what the optimizer knows are fp32.
        seed: Seed of the order of the segments.
        error_of: Returns the error that a block is to make small.
        folder: Where trained blocks are kept; a run that was interrupted goes on from there and ends with the same
            weights.
        machine: Where to work; None: where the model is.
        progress: Receives one event per block and epoch.

    Returns:
        How much was trained, and what was gained per block.

    Raises:
        RecipeError: The time or the text is too short.
        OSError: The disk of ``folder`` is full or fails.
    """
    machine = machine or Machine(model.device)
    segments = _segments(input_ids, seed)
    calls = block_calls(model, decoder, segments)
    with ExitStack() as stack:
        room = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))
        work = _Work(model, original, decoder, calls, dtype, error_of, machine)
        schedule = _schedule(folder, lambda: work.settle(segments, minutes))
        segments = segments[: schedule.segments]
        shape = states_shape(model, decoder, segments)
        flows = states_like(torch.Size((2, *shape)), dtype, room / f"flows{UNFINISHED}", machine)
        waypoint = Waypoint(folder and folder / f"flows-reached{UNFINISHED}", machine.ranks)
        first = waypoint.resume(flows)
        try:
            gains = [work.take(index, room) for index in range(first)]
        except (FileNotFoundError, SafetensorError):  # damaged: begin anew
            first, gains = 0, []
        if not first:
            for flow, source in zip(flows, (model, original), strict=True):
                fill_first_states(source, decoder, segments, flow)
        for index in range(first, len(decoder.blocks)):
            gains.append(work.refine_block(index, flows, schedule, seed, room, progress))
            waypoint.reach(index + 1, flows)
    return schedule, gains


def segment_length(input_ids: Tensor) -> int:
    """Return the tokens per segment of windows, shape ``[windows, length]``."""
    return min(SEGMENT, input_ids.shape[1])


def _segments(input_ids: Tensor, seed: int) -> Tensor:
    """Return the text in segments, in an order in which any number of first ones is a fair sample."""
    length = segment_length(input_ids)
    pieces = input_ids[:, : input_ids.shape[1] // length * length].reshape(-1, length)
    if len(pieces) < _FEWEST:
        raise RecipeError(
            f"the calibration text has {len(pieces)} segments of {length} tokens, but --refine needs {_FEWEST}: use "
            "more windows (--windows)."
        )
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))]


def _schedule(folder: Path | None, settle: Callable[[], Schedule]) -> Schedule:
    """Return the schedule that was settled when the run began, or settle it."""
    file = folder and folder / "schedule.json"
    if file is not None and file.is_file():
        return Schedule(**json.loads(file.read_text(encoding="utf-8")))
    schedule = settle()
    if file is not None:
        text = json.dumps({"segments": schedule.segments, "epochs": schedule.epochs})
        write_whole(file, lambda path: path.write_text(text, encoding="utf-8") and None)
    return schedule


@dataclass
class _Work:
    """What refining any block needs."""

    model: Any
    original: Any
    decoder: Decoder
    calls: list[BlockCall]
    dtype: torch.dtype
    error_of: Callable[[int], BlockError]
    machine: Machine

    def settle(self, segments: Tensor, minutes: float) -> Schedule:
        """Time the first block, and return what fits into the minutes."""
        few = Schedule(_FEWEST, 1)
        states = torch.empty((2, *states_shape(self.model, self.decoder, segments[:_FEWEST])), dtype=self.dtype)
        for flow, source in zip(states, (self.model, self.original), strict=True):
            fill_first_states(source, self.decoder, segments[:_FEWEST], flow)
        self._target(0, states[1])
        start = time.monotonic()
        self._target(0, states[1].clone())
        forward = (time.monotonic() - start) / _FEWEST
        start = time.monotonic()
        self._train(0, self._own(0), states, few, 0, lambda: None)
        # One epoch, and two looks at the segments to judge by.
        step = (time.monotonic() - start - 2 * len(few.held_out) * forward) / len(few.training)
        share = 60 * minutes / len(self.decoder.blocks)

        def fits(epochs: int) -> int:
            training, judging = 1 - 1 / _HELD_OUT, 1 / _HELD_OUT
            return int(share / (2 * forward + epochs * training * step + (epochs + 1) * judging * forward))

        if fits(1) < _FEWEST:
            needed = minutes * _FEWEST / max(1, fits(1))
            raise RecipeError(f"--refine {minutes:g} minutes are too few for this model here: at least {needed:.0f}.")
        epochs = EPOCHS
        while epochs > 1 and fits(epochs) < _FEWEST:
            epochs -= 1
        while epochs < _MOST_EPOCHS and fits(epochs + 1) >= len(segments):
            epochs += 1
        return Schedule(min(len(segments), fits(epochs)), epochs)

    def refine_block(
        self, index: int, flows: Tensor, schedule: Schedule, seed: int, room: Path, progress: ProgressCallback
    ) -> BlockGain:
        """Train a block, keep it in a file, and let both flows through it."""
        total, steps = len(self.decoder.blocks), schedule.epochs * len(schedule.training)
        taken = index * steps

        def step_done() -> None:
            nonlocal taken
            taken += 1
            progress(Progress(_STAGE, taken, total * steps, "steps"))

        self._target(index, flows[1])
        own = self._own(index)
        gain = self._train(index, own, flows, schedule, seed + index, step_done)
        self._keep(index, own, gain, room)
        self.take(index, room)
        block, call = self._block(self.model, index), self.calls[index].to(self.machine.device, self.dtype)
        with torch.no_grad(), placed(block, self.machine.device, self.dtype):
            self._advance(block, call, flows[0])
        progress(Progress(_STAGE, (index + 1) * steps, total * steps, "steps"))
        return gain

    def take(self, index: int, room: Path) -> BlockGain:
        """Put a block that was trained into the model, and return what it gained."""
        file = _file(room, index)
        trained = load_file(file)
        about = json.loads(bytes(trained.pop("about").tolist()))
        own = self._own(index)
        replaced = {
            id(old): nn.Parameter(trained[name].to(old.device), requires_grad=old.requires_grad)
            for name, old in own.items()
        }
        _swap(self._block(self.model, index), replaced)
        return BlockGain(**about)

    def _keep(self, index: int, own: dict[str, nn.Parameter], gain: BlockGain, room: Path) -> None:
        about = torch.tensor(list(json.dumps(vars(gain)).encode()), dtype=torch.uint8)
        tensors = {name: parameter.detach().contiguous() for name, parameter in own.items()}
        write_whole(_file(room, index), lambda path: save_file({**tensors, "about": about}, path))

    @torch.no_grad()
    def _target(self, index: int, flow: Tensor) -> None:
        """Let the original's flow through its block."""
        block, call = self._block(self.original, index), self.calls[index].to(self.machine.device, self.dtype)
        with placed(block, self.machine.device, self.dtype):
            self._advance(block, call, flow)

    def _advance(self, block: nn.Module, call: BlockCall, flow: Tensor) -> None:
        for window in range(len(flow)):
            flow[window] = run_block(block, flow[window : window + 1].to(self.machine.device), call)[0]

    def _block(self, model: Any, index: int) -> nn.Module:
        block: nn.Module = model.get_submodule(self.decoder.blocks[index])
        return block

    def _own(self, index: int) -> dict[str, nn.Parameter]:
        """Return the parameters of a block that no other block has, by name."""
        uses = Counter(
            id(parameter)
            for path in self.decoder.blocks
            for parameter in set(self.model.get_submodule(path).parameters())
        )
        named = self._block(self.model, index).named_parameters()
        return {name: parameter for name, parameter in named if uses[id(parameter)] == 1}

    def _train(
        self,
        index: int,
        own: dict[str, nn.Parameter],
        flows: Tensor,
        schedule: Schedule,
        seed: int,
        step_done: Callable[[], None],
    ) -> BlockGain:
        """Train copies of a block's own parameters in fp32; ``own`` is given them in the dtype of the model."""
        block, device = self._block(self.model, index), self.machine.device
        masters = {name: nn.Parameter(old.detach().to(device, torch.float32, copy=True)) for name, old in own.items()}
        back = {id(masters[name]): old for name, old in own.items()}
        _swap(block, {id(old): masters[name] for name, old in own.items()})
        try:
            with placed(block, device, torch.float32):
                task = BlockTask(
                    block=block,
                    call=self.calls[index].to(device, torch.float32),
                    read=lambda window: flows[0, window : window + 1].to(device, torch.float32),
                    target=lambda window: flows[1, window : window + 1].to(device),
                    error=self.error_of(index),
                    training=schedule.training,
                    held_out=schedule.held_out,
                    dtype=self.dtype,
                )
                gain = train_block(task, list(masters.values()), epochs=schedule.epochs, seed=seed, step_done=step_done)
        finally:
            _swap(block, back)
        if gain.epochs:
            for name, old in own.items():
                own[name] = nn.Parameter(masters[name].detach().to(old.device, old.dtype), old.requires_grad)
        return gain


def _swap(block: nn.Module, replaced: dict[int, nn.Parameter]) -> None:
    """Put other parameters in the place of those with these identities."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in replaced:
                module._parameters[name] = replaced[id(parameter)]


def _file(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"
