"""One run: its model, the machine it works on, where it keeps what it measures, and what it has to say."""

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
    load_model,
    load_tokenizer,
    named_dtype,
    refuse_compressed,
    resolve,
)
from basis_sharing.recipe.model import ModelSettings
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.stages import Stage, carry_out
from basis_sharing.run.work import WorkFolder, until_done


@dataclass(frozen=True)
class Run:
    """A model in evaluation mode, and everything that is the same for all stages of a run.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        whole: Its decoder with all projections.
        decoder: Its decoder with the projections that are to be compressed.
        source: Where the model comes from; None: it was given in memory.
        fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        work: Where what is measured is kept, if anywhere.
        machine: Where it is worked on.
        progress: Receives progress events.
        notes: What a reader of the result has to know, one sentence each; stages add theirs.
        stack: What has to be put back or removed when the run ends.
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
        """The model as it was given, the name of its class if it was in memory."""
        return self.source.given if self.source is not None else type(self.model).__name__

    @property
    def collected(self) -> Decoder:
        """The decoder whose statistics are collected: what is kept is of all projections and serves any roles."""
        return self.decoder if self.work is None else self.whole

    @property
    def processes(self) -> Processes:
        """The processes that share the work."""
        return self.machine.processes

    def carry_out(self, stages: Sequence[Stage]) -> None:
        """Run the stages in their order."""
        carry_out(stages, self)

    def within(self, least_memory: int) -> "Run":
        """Return the run with what is left of its memory for what may also lie in files.

        Raises:
            MemoryBudgetError: The memory that it may take is too small; says how much is needed.
        """
        return replace(self, machine=self.machine.needing(least_memory))

    def parts_folder(self, kind: str, about: Mapping[str, object]) -> Path | None:
        """Return a folder for parts that are complete one by one, removed when the run ends; None: nothing is kept.

        Raises:
            OutputError: The folder cannot be made.
        """
        if self.work is None:
            return None
        folder = self.work.parts_folder(kind, about)
        self.stack.enter_context(until_done(folder))
        return folder


def source_of(model: Any, tokenizer: Any) -> ModelSource | None:
    """Return where a model comes from, None for one in memory; refuse what cannot be compressed.

    Raises:
        BasisSharingError: The model is not there, compressed already, or in memory without its tokenizer.
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
    """Load a model if it is not in memory, and put it into evaluation mode for as long as the context.

    Args:
        settings: Its dtype and roles.
        model: The model as it was given.
        source: What :func:`source_of` says of it.
        tokenizer: The tokenizer of a model in memory.
        work: Folder where what is measured is to be kept.
        machine: Where to work; None: where the model is, within most of the free memory.
        progress: Receives progress events.

    Raises:
        ModelError: The model cannot be loaded, or its structure is not understood.
        RecipeError: The model lacks a role, or is in memory, so that nothing tells whether a later one is the same and
            what is measured cannot be kept.
        OutputError: The work folder is a file.
    """
    if source is not None:
        progress(Progress("loading", 0, 1, "model"))
        tokenizer, model = load_tokenizer(source), load_model(source, named_dtype(settings.dtype))
        progress(Progress("loading", 1, 1, "model"))
    elif work is not None:
        raise RecipeError("what is measured on a model given in memory cannot be kept: give its folder, or no work=.")
    known = fingerprint(source) if source is not None else None
    machine = machine or Machine(model.device)
    kept = None
    if work is not None and known is not None:
        folder = Path(work) if machine.processes.first else Path(work) / f"process-{machine.processes.index}"
        kept = WorkFolder(folder, known, dtype_name(model.dtype), machine.processes)
    whole = describe(model)
    decoder = with_roles(whole, settings.roles)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            yield Run(model, tokenizer, whole, decoder, source, known, kept, machine, progress, stack=stack)
    finally:
        model.train(training)
