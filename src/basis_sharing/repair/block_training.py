"""Train one block towards the original's hidden states, evaluated on held-out windows."""

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

    Dividing by the target's norm gives tokens with huge activations the same weight as the others.

    Args:
        states: Outputs y of a block, shape ``[..., tokens, hidden]``.
        targets: Outputs t of the original block, same shape.
    """
    targets = targets.float()
    squares = (states.float() - targets).square().sum(-1)
    return (squares / targets.square().sum(-1).clamp_min(1e-12)).mean()


@dataclass
class BlockTask:
    """One block on its device in fp32, its inputs in the compressed flow, and its target outputs.

    Attributes:
        block: The block.
        call: Returns the arguments that the model passes to it besides the hidden states, for a window.
        read: Returns its input for a window, on its device.
        target: Returns the output of the original block for a window, on its device.
        training: Indices of the training windows.
        held_out: Indices of the held-out windows.
        dtype: Dtype of the matrix products; weights and optimizer states stay in fp32.
        processes: The processes that share the work, each with its own windows.
    """

    block: nn.Module
    call: Callable[[int], BlockCall]
    read: Callable[[int], Tensor]
    target: Callable[[int], Tensor]
    training: list[int]
    held_out: list[int]
    dtype: torch.dtype
    processes: Processes = field(default_factory=Processes)

    def mixed(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products are computed in ``dtype``."""
        device = next(self.block.parameters()).device
        return torch.autocast(device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def loss(self, window: int) -> Tensor:
        """Return the error on one window, as a differentiable scalar."""
        with self.mixed():
            output = run_block(self.block, self.read(window), self.call(window))
        return relative_error(output, self.target(window))

    @torch.no_grad()
    def held_out_error(self) -> float:
        """Return the mean error on the held-out windows of all processes."""
        errors = [self.loss(window).item() for window in self.held_out]
        total = torch.tensor([sum(errors), len(errors)], dtype=torch.float64)
        self.processes.add_up(total)
        return (total[0] / total[1]).item()


@dataclass(frozen=True)
class BlockGain:
    """The held-out error of a block before and after its repair.

    Attributes:
        before: Error before the repair.
        refitted: Error after the refit of the coefficients, if there was one; never larger than ``before``.
        after: Error of the weights that are kept; never larger than ``refitted``.
        epochs: Epochs after which the kept weights were reached; 0: training did not improve them.
        diverged: Whether an epoch ended with NaN, infinity or more than ten times the initial error.
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
    """Train some parameters of a block, and keep the state with the smallest held-out error.

    Training stops early after two epochs without an improvement.

    Args:
        task: The block and its windows.
        parameters: The parameters to train.
        epochs: Largest number of passes over the training windows.
        seed: Seed of the order of the windows.
        rate: Learning rate relative to the root mean square of each parameter.
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
    """Enable gradients for some parameters of a block, and for no others, within the context."""
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
