"""The last check before a compressed model is published: it runs on one window, in the dtype in which it is stored."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.blocks.calls import block_calls, fill_first_states, run_block, states_shape
from basis_sharing.blocks.head import head_only
from basis_sharing.blocks.placing import placed
from basis_sharing.calibration.windows import TokenWindows
from basis_sharing.errors import NumericalError
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import dtype_name
from basis_sharing.run.progress import Progress
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes

_RANDOM_TOKENS = 64


class RunWindow:
    """Run the model on the first calibration window, block by block, in the dtype of its weights.

    Args:
        text: The calibration windows; None: random tokens are used.
        name: Name of the stage in progress events.

    Attributes:
        loss: Mean negative log-likelihood in nats per token; NaN or infinite if the model computes NaN or infinity.
        culprit: The first module whose output is not finite: a projection, or else a block; None: all are.
        source: The text, for messages.
    """

    loss: float = math.nan
    culprit: str | None = None

    def __init__(self, text: TokenWindows | None, name: str) -> None:
        self._text, self._name = text, name
        self.source = "random tokens" if text is None else text.source

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of a forward pass over one window."""
        length = shapes.length or _RANDOM_TOKENS
        operations = shapes.forward_over(length, length) + shapes.head_over(length)
        yield Needs(self._name, shapes.seconds(operations), shapes.forward_memory(length))

    @torch.no_grad()
    def run(self, run: Run) -> None:
        """Run the model on the window."""
        model, decoder, device = run.model, run.whole, run.machine.device
        ids = self._window(model)
        calls, shape = block_calls(model, decoder, ids), states_shape(model, decoder, ids)
        states = torch.empty(shape.all, dtype=model.dtype)
        fill_first_states(model, decoder, ids, states)
        output, self.culprit = states[0].to(device), None
        for index, path in enumerate(decoder.blocks):
            block = model.get_submodule(path)
            with placed(block, device), _watched(block, path, decoder) as found:
                output = run_block(block, output, calls.of(index, device, model.dtype)(0))
            if self.culprit is None and not _finite(output):
                self.culprit = found[0] if found else path
            run.progress(Progress(self._name, index + 1, len(decoder.blocks), "blocks"))
        losses = []
        with head_only(model, decoder, calls, device, model.dtype) as head:
            for start, count, predicted in shape.head_parts():
                own = ids[:, start : start + count].to(device)
                logits = head(output.narrow(shape.tokens, start, count), own)[0, :predicted]
                targets = ids[0, start + 1 :][:predicted].to(device)
                losses.append(nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item())
        self.loss = sum(losses) / (ids.shape[1] - 1)

    def _window(self, model: Any) -> Tensor:
        if self._text is not None:
            return self._text.input_ids[:1]
        generator = torch.Generator().manual_seed(0)
        return torch.randint(model.config.get_text_config().vocab_size, (1, _RANDOM_TOKENS), generator=generator)


class CheckResult:
    """Stop a run whose result computes NaN or infinity, or has an absurd loss, where the model before it does not.

    Args:
        original: The stage that has run the original on the window.
        result: The stage that has run the compressed model on it.
    """

    def __init__(self, original: RunWindow, result: RunWindow) -> None:
        self._original, self._result = original, result

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing."""
        return ()

    def run(self, run: Run) -> None:
        """Compare both losses.

        Raises:
            NumericalError: Only the compressed model computes NaN or infinity, or its loss is above the original's by
                more than twice that of a uniform guess.
        """
        before, after, dtype = self._original, self._result, dtype_name(run.model.dtype)
        if not math.isfinite(before.loss):
            where = f" (first in {before.culprit})" if before.culprit else ""
            run.notes.append(
                f"the original itself computes NaN or infinity in {dtype} on {before.source}{where}, so the result "
                "could not be checked: use --dtype bfloat16 or float32."
            )
            return
        if not math.isfinite(after.loss):
            where = after.culprit or "the output head"
            raise NumericalError(
                f"{where} of the compressed model computes NaN or infinity in {dtype} on {after.source}, where the "
                "original does not, so nothing is written: use --dtype bfloat16 or float32, or compress less."
            )
        most = before.loss + 2 * math.log(run.model.config.get_text_config().vocab_size)
        if after.loss > most:
            raise NumericalError(
                f"the compressed model's loss on {after.source} is {after.loss:.1f} nats per token, the original's "
                f"{before.loss:.1f}, so nothing is written: compress less, or calibrate on more text (--windows)."
            )


@contextmanager
def _watched(block: nn.Module, path: str, decoder: Decoder) -> Iterator[list[str]]:
    """Yield a list to which projections of a block are added in the order in which their outputs are not finite."""
    found: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            if not _finite(output):
                found.append(name)

        return hook

    own = [p.name for p in decoder.projections if decoder.blocks[p.block] == path]
    handles = [block.get_submodule(name.removeprefix(f"{path}.")).register_forward_hook(hook_for(name)) for name in own]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
