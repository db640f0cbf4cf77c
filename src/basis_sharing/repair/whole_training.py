"""Train a whole compressed model with transformers' Trainer: its factors, or LoRA on its coefficients.

The text is divided into training windows and a few held-out windows. The state with the smallest held-out loss is kept,
also if the training diverges. If an evaluation shows a larger held-out loss, training returns to the best state and
continues with a third of the learning rate, because a model that is close to its original needs smaller steps than one
that is far from it.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from basis_sharing.repair.optimizer import relative_adamw, warm_cosine
from basis_sharing.run.durable import write_whole
from basis_sharing.run.progress import Progress, ProgressCallback

_CUT = 3  # divisor of the rate
_CHECKPOINTS = 10  # per training
_PIECE = 512  # positions whose probabilities are in memory at a time
_WEIGHTS, _COMPLETE, _BEST = "weights.safetensors", "complete", "best.safetensors"


def next_token_loss(logits: Tensor, input_ids: Tensor, _: Tensor | None) -> Tensor:
    """Return the mean negative log-likelihood of the text, for logits ``[1, length, vocabulary]``."""
    return nn.functional.cross_entropy(logits[0, :-1].float(), input_ids[0, 1:])


def distillation_loss(logits: Tensor, _: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the mean KL divergence from the original's next-token distributions, ``[1, length, vocabulary]``."""
    assert teacher is not None
    total = logits.new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(logits[0].split(_PIECE), teacher[0].split(_PIECE), strict=True):
        total = total + nn.functional.kl_div(
            ours.float().log_softmax(-1), theirs.float().log_softmax(-1), log_target=True, reduction="sum"
        )
    return total / logits.shape[1]


@dataclass(frozen=True)
class TrainingSchedule:
    """The length of a training, and the number of evaluations on the held-out windows.

    Attributes:
        steps: Number of steps, one window each.
        evaluations: Number of evaluations during training, evenly spaced, the last one after the last step.
        loss_before: The held-out loss before the first step.
    """

    steps: int
    evaluations: int
    loss_before: float


@dataclass(frozen=True)
class TrainingOutcome:
    """The outcome of a training.

    Attributes:
        loss: The held-out loss of the state that is kept.
        slowed: How often the rate was cut to a third.
        diverged: Whether the training diverged and was stopped.
    """

    loss: float
    slowed: int
    diverged: bool


class Recovery:
    """One training, from its first step or from the last checkpoint of an interrupted one.

    Args:
        model: The model to train: a compressed model in fp32, or one with adapters.
        original: The teacher of a distillation; None: train on the next tokens of the text.
        parameters: The parameters to train, by name.
        training: Training windows, shape ``[windows, length]``.
        held_out: Held-out windows, shape ``[windows, length]``.
        dtype: Dtype of the matrix products.
        progress: Receives one event per step.
    """

    def __init__(
        self,
        model: Any,
        original: Any | None,
        parameters: dict[str, nn.Parameter],
        training: Tensor,
        held_out: Tensor,
        dtype: torch.dtype,
        progress: ProgressCallback,
    ) -> None:
        self.model, self.original, self.parameters = model, original, parameters
        self.training, self.held_out = training, held_out
        self.device = next(iter(parameters.values())).device
        self._dtype, self._progress = dtype, progress
        self._measure: Callable[[Tensor, Tensor, Tensor | None], Tensor] = (
            next_token_loss if original is None else distillation_loss
        )

    def loss(self, input_ids: Tensor) -> Tensor:
        """Return the loss on one window, shape ``[1, length]``, as a differentiable scalar."""
        input_ids, teacher = input_ids.to(self.device), None
        with self._mixed():
            if self.original is not None:
                with torch.no_grad():
                    teacher = self.original(input_ids=input_ids, use_cache=False).logits
            logits = self.model(input_ids=input_ids, use_cache=False).logits
        return self._measure(logits, input_ids, teacher)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss on the held-out windows."""
        return sum(self.loss(ids[None]).item() for ids in self.held_out) / len(self.held_out)

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters as contiguous tensors, by name."""
        return {name: parameter.detach().contiguous() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Load parameters from a file with the tensors of :meth:`tensors`."""
        kept = load_file(file)
        for name, parameter in self.parameters.items():
            parameter.copy_(kept[name])

    def run(
        self, schedule: TrainingSchedule, rate: float, *, relative: bool, seed: int, folder: Path
    ) -> TrainingOutcome:
        """Train, and leave the best state in the model.

        Args:
            schedule: Number of steps and evaluations.
            rate: Learning rate of the optimizer.
            relative: Whether the rate is relative to the root mean square of each parameter.
            seed: Seed of the order of the windows.
            folder: Folder of the checkpoints; a training that was interrupted there is resumed.

        Returns:
            The outcome of the training.
        """
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        own = list(self.parameters.values())
        optimizer = relative_adamw(own, rate) if relative else torch.optim.AdamW(own, lr=rate, weight_decay=0.0)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(schedule.steps))
        keeper = _BestKeeper(self, schedule, folder, self._progress, optimizer, rates)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=schedule.steps,
            per_device_train_batch_size=1,
            max_grad_norm=1.0,
            save_steps=math.ceil(schedule.steps / _CHECKPOINTS),
            save_total_limit=2,
            seed=seed,
            use_cpu=self.device.type == "cpu",
            disable_tqdm=True,
            report_to=[],
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        with _same_use_of_cache(self.model.config):
            trainer = _Trainer(self, arguments, (optimizer, rates), keeper)
            trainer.train(resume_from_checkpoint=_last_complete(folder))
            keeper.evaluate(trainer.state.global_step)
            keeper.restore()
        self.model.eval()
        return TrainingOutcome(keeper.best, keeper.slowed, keeper.diverged)

    def _mixed(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self.device.type, self._dtype)


@contextmanager
def _same_use_of_cache(config: Any) -> Iterator[None]:
    """Restore ``use_cache``, which the Trainer turns off, on exit; configurations of multimodal models have none."""
    before = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before
        elif hasattr(config, "use_cache"):
            del config.use_cache


class _BestKeeper(TrainerCallback):  # type: ignore[misc]
    """Evaluates on the held-out windows, keeps the best state, and slows or stops a training that gets worse."""

    def __init__(
        self,
        recovery: Recovery,
        schedule: TrainingSchedule,
        folder: Path,
        progress: ProgressCallback,
        optimizer: torch.optim.AdamW,
        rates: torch.optim.lr_scheduler.LambdaLR,
    ) -> None:
        self._recovery, self._steps, self._progress = recovery, schedule.steps, progress
        self._optimizer, self._rates, self._rate = optimizer, rates, rates.base_lrs[0]
        self._file, self._first = folder / _BEST, schedule.loss_before
        self._every, self.diverged = math.ceil(schedule.steps / schedule.evaluations), False
        if self._file.is_file():
            with safe_open(self._file, framework="pt") as file:
                kept = json.loads(file.metadata()["kept"])
            self.best, self._seen = kept["loss"], kept["step"]
        else:
            self.best, self._seen = self._first, 0
            self._keep(0)

    @property
    def slowed(self) -> int:
        """How often the rate was cut, computed from the rates because the Trainer's checkpoints hold them."""
        return round(math.log(self._rate / self._rates.base_lrs[0], _CUT))

    def evaluate(self, step: int) -> bool:
        """Evaluate the state after ``step`` steps, keep it if it is the best, and return whether it is worse."""
        if step <= self._seen:
            return False
        loss, self._seen = self._recovery.held_out_loss(), step
        self.diverged = not math.isfinite(loss) or loss > 2 * self._first + 1
        if not self.diverged and loss < self.best:
            self.best = loss
            self._keep(step)
        return bool(loss > self.best)

    def restore(self) -> None:
        """Load the best state into the model."""
        self._recovery.load(self._file)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        """Report a step, and evaluate, restore, slow down or stop where necessary."""
        self._progress(Progress("recovering", state.global_step, self._steps, "steps"))
        if state.global_step % self._every == 0:
            worse = self.evaluate(state.global_step)
            if self.diverged:
                control.should_training_stop = True
            elif worse and state.global_step < self._steps:
                self.restore()
                self._slow_down()

    def on_save(self, arguments: Any, state: Any, _: Any, **__: Any) -> None:
        """Mark a checkpoint as complete."""
        (Path(arguments.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()

    def _slow_down(self) -> None:
        """Cut the rate, and reset the optimizer's momentum."""
        self._rates.base_lrs = [rate / _CUT for rate in self._rates.base_lrs]
        for group in self._optimizer.param_groups:
            group["lr"] /= _CUT
        for state in self._optimizer.state.values():
            state["exp_avg"].zero_()

    def _keep(self, step: int) -> None:
        tensors = self._recovery.tensors()
        kept = json.dumps({"loss": self.best, "step": step})
        write_whole(self._file, lambda path: save_file(tensors, path, {"kept": kept}))


class _Trainer(Trainer):  # type: ignore[misc]
    """Transformers' Trainer with the loss of a recovery, and checkpoints that hold only the trained parameters."""

    def __init__(self, recovery: Recovery, arguments: TrainingArguments, optimizers: Any, keeper: _BestKeeper) -> None:
        windows = [{"input_ids": ids} for ids in recovery.training]
        super().__init__(
            model=recovery.model,
            args=arguments,
            train_dataset=windows,
            data_collator=lambda batch: {"input_ids": torch.stack([item["input_ids"] for item in batch])},
            optimizers=optimizers,
            callbacks=[keeper],
        )
        self.remove_callback(PrinterCallback)
        self._recovery = recovery

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of one window."""
        return self._recovery.loss(inputs["input_ids"])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _WEIGHTS, lambda path: save_file(self._recovery.tensors(), path))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._recovery.load(Path(resume_from_checkpoint) / _WEIGHTS)


def _last_complete(folder: Path) -> str | None:
    """Return the last complete checkpoint; None if there is none."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None
