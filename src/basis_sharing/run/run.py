"""One run: its model, its machine, its work folder and its notes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.models.decoder import describe, with_roles
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import (
    ModelSource,
    dtype_name,
    fingerprint,
    load_tokenizer,
    load_with_notes,
    named_dtype,
    refuse_compressed,
    resolve,
)
from basis_sharing.recipe.model import ModelSettings
from basis_sharing.run.machine import Machine, decomposing_on
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.stages import Stage, carry_out
from basis_sharing.run.work import WorkFolder, until_done


@dataclass(frozen=True)
class Run:
    """A model in evaluation mode, with everything that is common to all stages of a run.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        whole: Its decoder with all projections.
        decoder: Its decoder with the projections to compress.
        source: Source of the model; None: it was given in memory.
        fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        work: Folder of measurements; None: they are not kept.
        machine: Device, memory and processes of the run.
        progress: Receives progress events.
        notes: Notes for the reader of the result, one sentence each; every stage may add some.
        stack: Contexts that are closed when the run ends.
    """

    model: Any
    tokenizer: Any
    whole: Decoder
    decoder: Decoder
    source: ModelSource | None = None
    fingerprint: str | None = None
    work: WorkFolder | None = None
    machine: Machine = field(default_factory=Machine)
    progress: ProgressCallback = silent
    notes: list[str] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        """The model as it was given, or the name of its class if it was given in memory."""
        return self.source.given if self.source is not None else type(self.model).__name__

    @property
    def collected(self) -> Decoder:
        """The decoder whose statistics are collected: statistics that are kept cover all projections, for any roles."""
        return self.decoder if self.work is None else self.whole

    @property
    def processes(self) -> Processes:
        """The processes that share the work."""
        return self.machine.processes

    def carry_out(self, stages: Sequence[Stage]) -> None:
        """Run the stages in their order."""
        carry_out(stages, self)

    def within(self, least_memory: int) -> "Run":
        """Return the run with the memory that remains after the ``least_memory`` bytes that are always needed.

        Raises:
            MemoryBudgetError: The memory budget is too small; the message says how much is needed.
        """
        return replace(self, machine=self.machine.needing(least_memory))

    def parts_folder(self, kind: str, about: Mapping[str, object]) -> Path | None:
        """Return a folder for partial results that is removed when the run ends; None: nothing is kept.

        Raises:
            OutputError: The folder cannot be created.
        """
        if self.work is None:
            return None
        folder = self.work.parts_folder(kind, about)
        self.stack.enter_context(until_done(folder))
        return folder


def source_of(model: Any, tokenizer: Any) -> ModelSource | None:
    """Return the source of a model, None for one in memory; refuse models that cannot be compressed.

    Raises:
        BasisSharingError: The model does not exist, is already compressed, or is in memory without its tokenizer.
    """
    if isinstance(model, (str, Path)):
        source = resolve(model)
        refuse_compressed(source)
        return source
    if tokenizer is None:
        raise RecipeError("a model given in memory needs its tokenizer: pass tokenizer=...")
    if getattr(model.config, "quantization_config", None):
        raise ModelError("the model given in memory is already compressed or quantized: give the original instead.")
    return None


@contextmanager
def opened(
    settings: ModelSettings,
    model: Any,
    *,
    source: ModelSource | None = None,
    tokenizer: Any = None,
    work: str | Path | None = None,
    machine: Machine | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[Run]:
    """Load a model if it is not in memory, and yield its run; the model is in evaluation mode within the context.

    Args:
        settings: Dtype and roles of the model.
        model: The model as it was given.
        source: The result of :func:`source_of` for it.
        tokenizer: The tokenizer of a model in memory.
        work: Folder in which measurements are kept; None: they are not kept.
        machine: Where to work; None: the model's device, within most of the free memory.
        progress: Receives progress events.

    Raises:
        ModelError: The model cannot be loaded, lacks a role, or its structure cannot be described.
        RecipeError: ``work`` is given for a model in memory, which has no fingerprint to recognize it by.
        OutputError: The work folder is a file.
    """
    notes: list[str] = []
    if source is not None:
        progress(Progress("loading", 0, 1, "model"))
        tokenizer, (model, notes) = load_tokenizer(source), load_with_notes(source, named_dtype(settings.dtype))
        progress(Progress("loading", 1, 1, "model"))
    elif work is not None:
        raise RecipeError("what is measured on a model given in memory cannot be kept: give its folder, or no work=.")
    digest = fingerprint(source) if source is not None else None
    machine = machine or Machine(model.device)
    kept = None
    if work is not None and digest is not None:
        folder = Path(work) if machine.processes.first else Path(work) / f"process-{machine.processes.index}"
        kept = WorkFolder(folder, digest, dtype_name(model.dtype), machine.processes)
    whole = describe(model)
    decoder = with_roles(whole if settings.compresses_experts else whole.without_experts, settings.roles)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack, decomposing_on(machine.algebra):
            yield Run(model, tokenizer, whole, decoder, source, digest, kept, machine, progress, notes, stack)
    finally:
        model.train(training)
