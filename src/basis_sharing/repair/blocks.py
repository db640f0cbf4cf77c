"""Repair blocks on the compressed flow: refit coefficients, and train factors and norms, towards the original.

Blocks are repaired in depth order. The input of a block is the hidden states of the compressed model, whose earlier
blocks are already repaired; its targets are the original's hidden states at the same depth. A block can therefore also
correct errors of the blocks before it, which the planner, with one projection and the original's activations, cannot
take into account. Only one block at a time is on the device.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from basis_sharing.blocks.calls import BlockCalls, block_calls, fill_first_states, read_by, run_block, states_shape
from basis_sharing.blocks.placing import placed
from basis_sharing.blocks.states import states_like
from basis_sharing.errors import RecipeError
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.repair.anchored_refit import FlowMoments, anchored_coefficients, best_choice, flow_moments
from basis_sharing.repair.block_training import BlockGain, BlockTask, train_block
from basis_sharing.repair.segments import (
    FEWEST_SEGMENTS,
    HELD_OUT,
    REFIT_SEGMENTS,
    RepairSchedule,
    cut_segments,
    own_share,
)
from basis_sharing.run.durable import UNFINISHED, load_or_create, write_whole
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.resume import ResumePoint
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.runtime.surgery import basis_of, set_coefficients

EPOCHS = 2
_MOST_EPOCHS = 16
_COMPRESSED, _ORIGINAL, _TARGETS = range(3)  # inputs in both flows, and the original's outputs


def repair_blocks(
    model: Any,
    original: Any,
    decoder: Decoder,
    input_ids: Tensor,
    *,
    refit: bool,
    minutes: float | None,
    dtype: torch.dtype,
    seed: int,
    bos: bool = False,
    folder: Path | None = None,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> tuple[RepairSchedule, list[BlockGain]]:
    """Repair the blocks of a compressed model one after the other; shapes, ranks and sharing do not change.

    A basis shared by projections of several blocks is not changed, because the other blocks would get worse.

    Args:
        model: Compressed model; its parameters are replaced.
        original: The model it was made from.
        decoder: The structure of both.
        input_ids: Windows of text, shape ``[windows, length]``; they are cut into segments of 512 tokens.
        refit: Whether coefficients are refitted first (:mod:`~basis_sharing.repair.anchored_refit`).
        minutes: About how long training may take. The first steps are timed to decide how much text is used; None: no
            training, and the refit uses 48 segments.
        dtype: Dtype of activations and products; weights and optimizer states are fp32.
        seed: Seed of the order of the segments.
        bos: Whether windows, and so segments, start with a beginning-of-sequence token.
        folder: Where repaired blocks are kept; an interrupted run is resumed from there and ends with the same weights.
        machine: Where to work; None: where the model is. Several processes divide the segments among them and refit
            on the inputs of all of them; training runs in one process only.
        progress: Receives one event per block and step.

    Returns:
        How much text was used, and the gain of every block.

    Raises:
        RecipeError: The time or the text is too short.
        OSError: The disk of ``folder`` is full or fails.
    """
    machine = machine or Machine(model.device)
    segments = cut_segments(input_ids, seed, bos)
    repair = _Repair(model, original, decoder, dtype, refit, machine)

    with ExitStack() as stack:
        kept_in = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="basis-sharing-")))

        def decide() -> RepairSchedule:
            if minutes is None:
                return RepairSchedule(min(len(segments), REFIT_SEGMENTS), 0)
            return repair.timed_schedule(segments, minutes, kept_in)

        schedule = load_or_create(folder and folder / "schedule.json", RepairSchedule, decide)
        own = segments[own_share(schedule, machine.processes).segments]
        point = ResumePoint(folder and folder / f"flows-reached{UNFINISHED}", machine.processes)
        return schedule, repair.repair_all(own, schedule, seed, kept_in, point, progress)


@dataclass(frozen=True)
class _Flows:
    """The states at the current block.

    Attributes:
        states: Inputs in both flows, and the original's outputs, shape ``[3, windows, *states of a window]``.
        calls: The arguments of the blocks, as the original passes them.
        length: Tokens per window.
    """

    states: Tensor
    calls: BlockCalls
    length: int


@dataclass
class _Repair:
    """The repair of all blocks of one model."""

    model: Any
    original: Any
    decoder: Decoder
    dtype: torch.dtype
    refit: bool
    machine: Machine

    def repair_all(
        self,
        segments: Tensor,
        schedule: RepairSchedule,
        seed: int,
        folder: Path,
        point: ResumePoint,
        progress: ProgressCallback,
    ) -> list[BlockGain]:
        """Repair all blocks, resuming an interrupted run; return the gain of every block."""
        flows = self._flows(segments, folder)
        first = point.resume(flows.states)
        if not all(self.machine.processes.gather(first and _readable(folder, first))):
            first = 0  # start from the first block
        gains = [self.load_block(index, folder) for index in range(first)]
        if not first:
            self._begin(flows, segments)
        for index in range(first, len(self.decoder.blocks)):
            gains.append(self.repair_block(index, flows, schedule, seed, folder, progress))
            point.reach(index + 1, flows.states)
        return gains

    def _flows(self, segments: Tensor, folder: Path) -> _Flows:
        """Return the flows for some segments, not yet filled."""
        shape = torch.Size((3, *states_shape(self.model, self.decoder, segments).all))
        states = states_like(shape, self.dtype, folder / f"flows{UNFINISHED}", self.machine)
        calls = block_calls(self.original, self.decoder, segments, folder=folder, machine=self.machine)
        return _Flows(states, calls, segments.shape[1])

    def _begin(self, flows: _Flows, segments: Tensor) -> None:
        """Write the inputs of the first block."""
        for flow, source in ((_COMPRESSED, self.model), (_ORIGINAL, self.original)):
            fill_first_states(source, self.decoder, segments, flows.states[flow])

    def timed_schedule(self, segments: Tensor, minutes: float, folder: Path) -> RepairSchedule:
        """Time the first block, and return the schedule that fits into ``minutes``.

        Raises:
            RecipeError: The time is too short for the smallest schedule.
        """
        available = len(segments)
        few = RepairSchedule(FEWEST_SEGMENTS, 1)
        segments = segments[own_share(few, self.machine.processes).segments]
        flows = self._flows(segments, folder)
        self._begin(flows, segments)
        self._compute_targets(0, flows)  # warms up
        start = time.monotonic()
        self._compute_targets(0, flows)
        forward = (time.monotonic() - start) / FEWEST_SEGMENTS
        start = time.monotonic()
        with self._masters(0) as masters:
            self._train(self._task(0, flows, few), masters, few, 0, lambda: None)
        # One epoch, and two evaluations on the held-out segments.
        step = (time.monotonic() - start - 2 * len(few.held_out) * forward) / len(few.training)
        share = 60 * minutes / len(self.decoder.blocks)

        def fits(epochs: int) -> int:
            training, held_out = 1 - 1 / HELD_OUT, 1 / HELD_OUT
            return int(share / (2 * forward + epochs * training * step + (epochs + 1) * held_out * forward))

        if fits(1) < FEWEST_SEGMENTS:
            needed = minutes * FEWEST_SEGMENTS / max(1, fits(1))
            raise RecipeError(f"--refine {minutes:g} minutes are too few for this model here: at least {needed:.0f}.")
        epochs = EPOCHS
        while epochs > 1 and fits(epochs) < FEWEST_SEGMENTS:
            epochs -= 1
        while epochs < _MOST_EPOCHS and fits(epochs + 1) >= available:
            epochs += 1
        return RepairSchedule(min(available, fits(epochs)), epochs)

    def repair_block(
        self, index: int, flows: _Flows, schedule: RepairSchedule, seed: int, folder: Path, progress: ProgressCallback
    ) -> BlockGain:
        """Refit and train a block, keep it in a file, and advance both flows to its outputs."""
        stage = "refining" if schedule.epochs else "refitting to the compressed flow"
        steps = max(1, schedule.epochs * len(schedule.training))
        done, total = index * steps, len(self.decoder.blocks) * steps

        def step_done() -> None:
            nonlocal done
            done += 1
            progress(Progress(stage, done, total, "steps"))

        self._compute_targets(index, flows)
        with self._masters(index) as masters:
            task = self._task(index, flows, schedule)
            before = task.held_out_error()
            refitted = self._refit(index, flows, task, before) if self.refit else before
            gain = self._train(task, masters, schedule, seed + index, step_done)
        gain = replace(gain, before=before, refitted=refitted)
        self._keep(index, masters, gain, folder)
        self.load_block(index, folder)
        block, call = self._block(self.model, index), flows.calls.of(index, self.machine.device, self.dtype)
        with torch.no_grad(), placed(block, self.machine.device, self.dtype):
            for window, states in enumerate(flows.states[_COMPRESSED]):
                flows.states[_COMPRESSED, window] = run_block(block, states.to(self.machine.device), call(window))
        flows.states[_ORIGINAL] = flows.states[_TARGETS]
        progress(Progress(stage, (index + 1) * steps, total, "steps"))
        return gain

    def load_block(self, index: int, folder: Path) -> BlockGain:
        """Load a repaired block from its file into the model, and return its gain."""
        repaired = load_file(_file(folder, index))
        about = json.loads(bytes(repaired.pop("about").tolist()))
        replaced = {
            id(old): nn.Parameter(repaired[name].to(old.device), requires_grad=old.requires_grad)
            for name, old in self._own(index).items()
            if name in repaired
        }
        _swap(self._block(self.model, index), replaced)
        return BlockGain(**about)

    def _keep(self, index: int, masters: dict[str, nn.Parameter], gain: BlockGain, folder: Path) -> None:
        """Write the gain of a block, and its parameters in their stored dtype if they have improved."""
        tensors = {"about": torch.tensor(list(json.dumps(vars(gain)).encode()), dtype=torch.uint8)}
        if gain.after < gain.before:
            for name, old in self._own(index).items():
                tensors[name] = masters[name].detach().to("cpu", old.dtype).contiguous()
        write_whole(_file(folder, index), lambda path: save_file(tensors, path))

    @torch.no_grad()
    def _compute_targets(self, index: int, flows: _Flows) -> None:
        """Compute the outputs of the original's block."""
        block, call = self._block(self.original, index), flows.calls.of(index, self.machine.device, self.dtype)
        with placed(block, self.machine.device, self.dtype):
            for window, states in enumerate(flows.states[_ORIGINAL]):
                flows.states[_TARGETS, window] = run_block(block, states.to(self.machine.device), call(window))

    def _block(self, model: Any, index: int) -> nn.Module:
        block: nn.Module = model.get_submodule(self.decoder.blocks[index])
        return block

    def _own(self, index: int) -> dict[str, nn.Parameter]:
        """Return the floating-point parameters of a block that no other block uses, by name."""
        uses = Counter(
            id(parameter)
            for path in self.decoder.blocks
            for parameter in set(self.model.get_submodule(path).parameters())
        )
        named = self._block(self.model, index).named_parameters()
        return {name: p for name, p in named if uses[id(p)] == 1 and p.is_floating_point()}

    @contextmanager
    def _masters(self, index: int) -> Iterator[dict[str, nn.Parameter]]:
        """Yield fp32 copies of a block's own parameters, which replace them, on the device, within the context."""
        block, device, own = self._block(self.model, index), self.machine.device, self._own(index)
        masters = {name: nn.Parameter(old.detach().to(device, torch.float32, copy=True)) for name, old in own.items()}
        _swap(block, {id(old): masters[name] for name, old in own.items()})
        try:
            with placed(block, device, torch.float32):
                yield masters
        finally:
            _swap(block, {id(masters[name]): old for name, old in own.items()})

    def _task(self, index: int, flows: _Flows, schedule: RepairSchedule) -> BlockTask:
        device, share = self.machine.device, own_share(schedule, self.machine.processes)
        return BlockTask(
            block=self._block(self.model, index),
            call=flows.calls.of(index, device, torch.float32),
            read=lambda window: flows.states[_COMPRESSED, window].to(device, torch.float32),
            target=lambda window: flows.states[_TARGETS, window].to(device),
            training=share.training,
            held_out=share.held_out,
            dtype=self.dtype,
            processes=self.machine.processes,
        )

    def _train(
        self,
        task: BlockTask,
        masters: dict[str, nn.Parameter],
        schedule: RepairSchedule,
        seed: int,
        step_done: Callable[[], None],
    ) -> BlockGain:
        return train_block(task, list(masters.values()), epochs=schedule.epochs, seed=seed, step_done=step_done)

    @torch.no_grad()
    def _refit(self, index: int, flows: _Flows, task: BlockTask, before: float) -> float:
        """Refit the coefficients of a block, input by input in forward order; return the held-out error."""
        block, original = self._block(self.model, index), self._block(self.original, index)
        path, call = self.decoder.blocks[index], flows.calls.of(index, self.machine.device, self.dtype)
        readers: dict[str, list[Projection]] = {}
        for projection in self.decoder.projections:
            if projection.block == index:
                readers.setdefault(projection.input, []).append(projection)
        error = before
        for projections in readers.values():
            first = projections[0].name.removeprefix(f"{path}.")
            factorized = [p for p in projections if _can_be_refitted(self.model.get_submodule(p.name))]

            def pair(window: int, first: str = first) -> tuple[Tensor, Tensor]:
                theirs = flows.states[_ORIGINAL, window].to(self.machine.device)
                with task.mixed():
                    ours = read_by(block, first, task.read(window), task.call(window))
                return ours, read_by(original, first, theirs, call(window))

            if not factorized:
                continue
            with placed(original, self.machine.device, self.dtype):
                if any(len(read) != flows.length for read in pair(0)):
                    continue  # an expert, whose tokens differ between the flows
                training = task.training[: REFIT_SEGMENTS // self.machine.processes.count]
                moments = flow_moments(map(pair, training), projections[0].d_in, self.machine.processes)
            error = self._refit_readers(factorized, moments, task)
        return error

    def _refit_readers(self, projections: list[Projection], moments: FlowMoments, task: BlockTask) -> float:
        """Refit the coefficients of projections that read one input; return the held-out error."""
        target = self.machine.algebra, torch.float64
        moments = FlowMoments(moments.own.to(*target), moments.cross.to(*target))
        bases = [basis_of(self.model, p.name).to(*target) for p in projections]
        planned = [self.model.get_submodule(p.name).coeff.weight.detach().to(*target).T for p in projections]
        weights = [weight(self.original, p).to(*target) for p in projections]

        def refitted(anchor: float) -> list[Tensor]:
            return [
                anchored_coefficients(B, moments, W, C, anchor) for B, W, C in zip(bases, weights, planned, strict=True)
            ]

        def install(coefficients: Sequence[Tensor]) -> None:
            for p, C in zip(projections, coefficients, strict=True):
                set_coefficients(self.model, p.name, C)

        return best_choice(planned, refitted, install, task.held_out_error)


def _can_be_refitted(module: nn.Module) -> bool:
    """Return whether a projection has coefficients that are not rounded."""
    return isinstance(module, FactorizedLinear) and not module.in_few_bits


def _swap(block: nn.Module, replaced: dict[int, nn.Parameter]) -> None:
    """Replace parameters of a block; ``replaced`` maps the ``id`` of an old parameter to the new one."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in replaced:
                module._parameters[name] = replaced[id(parameter)]


def _readable(folder: Path, count: int) -> bool:
    """Return whether the files of the first ``count`` blocks exist and can be read."""
    try:
        for index in range(count):
            load_file(_file(folder, index))
    except (FileNotFoundError, SafetensorError):
        return False
    return True


def _file(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"
