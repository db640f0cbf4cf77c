"""Train one block towards the original's states, with an eye on windows it does not learn from."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from basis_sharing.blocks.calls import BlockCall, run_block
from basis_sharing.repair.optimizer import relative_adamw, warm_cosine
from basis_sharing.run.processes import Processes

RATE = 1e-3
_PATIENCE = 2


def relative_error(states: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the tokens of ||y - t||^2 / ||t||^2, as a scalar.

    No token counts for more because its activations are huge.

    Args:
        states: What a block hands on, y, ``[..., tokens, hidden]``.
        targets: What the original hands on, t.
    """
    targets = targets.float()
    squares = (states.float() - targets).square().sum(-1)
    return (squares / targets.square().sum(-1).clamp_min(1e-12)).mean()


@dataclass
class BlockTask:
    """One block on its device in fp32, what it reads in the compressed flow, and what it should hand on.

    Attributes:
        block: The block.
        call: What the model hands to it besides the states.
        read: Returns what it reads of a window, ``[1, length, hidden]``, on its device.
        target: Returns what the original hands on for a window, ``[1, length, hidden]``, on its device.
        training: Windows to learn from.
        held_out: Windows to judge by.
        dtype: Dtype of the products; weights, and what the optimizer knows, stay in fp32.
        processes: The processes that have windows of their own.
    """

    block: nn.Module
    call: BlockCall
    read: Callable[[int], Tensor]
    target: Callable[[int], Tensor]
    training: list[int]
    held_out: list[int]
    dtype: torch.dtype
    processes: Processes = field(default_factory=Processes)

    def mixed(self) -> AbstractContextManager[object]:
        """Compute products in ``dtype`` for as long as the context."""
        device = next(self.block.parameters()).device
        return torch.autocast(device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def loss(self, window: int) -> Tensor:
        """Return the error on one window, as a scalar that can be differentiated."""
        with self.mixed():
            output = run_block(self.block, self.read(window), self.call)
        return relative_error(output, self.target(window))

    @torch.no_grad()
    def held_out_error(self) -> float:
        """Return the mean error on the windows to judge by, of all processes."""
        errors = [self.loss(window).item() for window in self.held_out]
        total = torch.tensor([sum(errors), len(errors)], dtype=torch.float64)
        self.processes.add_up(total)
        return (total[0] / total[1]).item()


@dataclass(frozen=True)
class BlockGain:
    """What was done to the held-out error of a block.

    Attributes:
        before: Error before.
        refitted: Error after the refit of the coefficients, if there was one; never larger.
        after: Error of the weights that are kept; never larger.
        epochs: Passes over the training windows until the kept weights; 0: training changed nothing.
        diverged: Whether an epoch ended in NaN, infinity or more than ten times the error.
    """

    before: float
    refitted: float
    after: float
    epochs: int
    diverged: bool = False


def train_block(
    task: BlockTask,
    parameters: list[nn.Parameter],
    *,
    epochs: int,
    seed: int,
    rate: float = RATE,
    step_done: Callable[[], None] = lambda: None,
) -> BlockGain:
    """Train some parameters of a block, and keep the best state that was seen on the held-out windows.

    It stops early once two epochs in a row have not improved on the best one.

    Args:
        task: The block and its windows.
        parameters: What may change.
        epochs: Passes over the training windows at most.
        seed: Seed of the order of the windows.
        rate: Step relative to the size of each parameter.
        step_done: Called after every step.
    """
    before = best = task.held_out_error()
    kept, kept_epoch, diverged = [p.detach().clone() for p in parameters], 0, False
    generator = torch.Generator().manual_seed(seed)
    with _trainable(task.block, parameters):
        optimizer = relative_adamw(parameters, rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(epochs * len(task.training)))
        for epoch in range(1, epochs + 1):
            for position in torch.randperm(len(task.training), generator=generator).tolist():
                loss = task.loss(task.training[position])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                step_done()
            error = task.held_out_error()
            if not math.isfinite(error) or error > 10 * before:
                diverged = True
                break
            if error < best:
                best, kept, kept_epoch = error, copy.deepcopy([p.detach() for p in parameters]), epoch
            elif epoch - kept_epoch >= _PATIENCE:
                break
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)
    return BlockGain(before, before, best, kept_epoch, diverged)


@contextmanager
def _trainable(block: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow into some parameters of a block, and no others, for as long as the context."""
    before = [(parameter, parameter.requires_grad) for parameter in {*block.parameters(), *parameters}]
    try:
        block.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
            parameter.grad = None
