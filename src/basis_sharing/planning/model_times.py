"""The time of a forward pass of a whole model, measured as the command ``bench`` measures it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from basis_sharing.benchmark.turns import Timed, take_turns
from basis_sharing.benchmark.workloads import Decode, Prefill
from basis_sharing.costs.stopwatch import Crowding, Measured, Reference, reference_timer, summary
from basis_sharing.costs.time import Workload
from basis_sharing.models.family import Decoder
from basis_sharing.run.progress import Progress, ProgressCallback

_FEW, _MORE = 2, 8  # blocks; their difference is a multiple of the usual periods of layers of several kinds
_REPEATS, _MOST_REPEATS = 3, 8
_PROMPTS, _STEPS = 3, 16  # turns in a repeat


def time_of_model(
    model: Any,
    decoder: Decoder,
    workload: Workload,
    device: torch.device,
    progress: ProgressCallback,
    reference: Reference,
) -> Measured:
    """Return the time of a forward pass of the original model on a device.

    Of a model with more than eight blocks only two and eight are run, and the others are assumed to take as long as six
    of them do on average. On a CUDA device the model is compiled with CUDA graphs.

    Args:
        model: The model, anywhere; it is copied to the device as far as needed.
        decoder: Its structure.
        workload: What it does.
        device: The device.
        progress: Receives progress events.
        reference: The product in whose time the pass is measured.
    """
    count = len(decoder.blocks)
    lengths = (count,) if count <= _MORE else (_FEW, _MORE)
    progress(Progress(f"timing the original, {workload.phase}", 0, 1, "passes"))
    with _placed(model, decoder, lengths[-1], device) as placed:
        runs = [_Shortened(placed, decoder, length, _timed(placed, workload, device)) for length in lengths]
        measured = _measured(runs, workload, device, reference)
    progress(Progress(f"timing the original, {workload.phase}", 1, 1, "passes"))
    if len(lengths) == 1:
        return measured[0]
    few, more = measured
    per_block = (more.seconds - few.seconds) / (_MORE - _FEW)
    seconds = more.seconds + (count - _MORE) * per_block
    return Measured(seconds, max(few.spread, more.spread), few.steady and more.steady)


def _measured(
    runs: list["_Shortened"], workload: Workload, device: torch.device, reference: Reference
) -> list[Measured]:
    """Return the times of forward passes that take turns with a reference."""
    turns = _PROMPTS if workload.phase == "prefill" else _STEPS
    repeats, beside = _REPEATS, _ReferenceTurn(reference, device)
    while True:
        crowding = Crowding()
        *passes, standard = (times.seconds for times in take_turns([*runs, beside], repeats, turns))
        quiet = device.type != "cpu" or not crowding.crowded()
        found = []
        for seconds in passes:
            rounds = [one / other * reference.seconds for one, other in zip(seconds, standard, strict=True)]
            found.append(summary([(one, quiet) for one in rounds], middle=True))
        if all(one.steady for one in found) or repeats == _MOST_REPEATS:
            return found
        repeats = _MOST_REPEATS


def _timed(model: Any, workload: Workload, device: torch.device) -> Callable[[], Timed]:
    """Return a function that makes the forward pass of a model."""
    vocabulary: int = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    rows = workload.batch if workload.phase == "decode" else 1
    ids = torch.randint(vocabulary, (rows, workload.tokens), generator=generator).to(device)

    def make() -> Timed:
        forward = None
        if device.type == "cuda":
            from basis_sharing.benchmark.compiling import compiled_forward  # compilers, which nothing else here needs

            forward = compiled_forward(model, device)
        return Prefill(model, ids, forward) if workload.phase == "prefill" else Decode(model, ids, _STEPS, forward)

    return make


class _ReferenceTurn:
    """The reference as a contestant."""

    def __init__(self, reference: Reference, device: torch.device) -> None:
        self._timer = reference_timer(reference, device)

    def prepare(self) -> None:
        """Nothing to prepare."""

    def turn(self) -> float:
        """Run the reference a few times, and return the seconds of one run."""
        return self._timer()


class _Shortened:
    """A forward pass through the first blocks of a model."""

    def __init__(self, model: Any, decoder: Decoder, length: int, make: Callable[[], Timed]) -> None:
        self._model, self._decoder, self._length = model, decoder, length
        self._timed = make()

    def prepare(self) -> None:
        """Prepare the turns of one repeat."""
        with _first_blocks(self._model, self._decoder, self._length):
            self._timed.prepare()

    def turn(self) -> float:
        """Run the blocks once, with everything around them, and return the seconds it took."""
        with _first_blocks(self._model, self._decoder, self._length):
            return self._timed.turn()


@contextmanager
def _first_blocks(model: Any, decoder: Decoder, count: int) -> Iterator[None]:
    """Let a model have its first blocks only, within the context."""
    parent, _, name = decoder.blocks[0].rpartition(".")[0].rpartition(".")
    owner = model.get_submodule(parent)
    whole = owner._modules[name]
    owner._modules[name] = nn.ModuleList(list(whole)[:count]) if count < len(whole) else whole
    try:
        yield
    finally:
        owner._modules[name] = whole


@contextmanager
def _placed(model: Any, decoder: Decoder, count: int, device: torch.device) -> Iterator[Any]:
    """Yield the model on a device: itself, or a copy with its first blocks."""
    if model.device == device:
        yield model
        return
    with _first_blocks(model, decoder, count):
        copy = deepcopy(model).to(device)
    yield copy
