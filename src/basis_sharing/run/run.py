"""The model that a run is about: where it comes from, loaded and described."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Ranks
from basis_sharing.run.progress import Progress, ProgressCallback
from basis_sharing.run.work import WorkFolder


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, and what is known about it before anything is measured.

    Attributes:
        source: Where it comes from; None for a model given in memory.
        model: The model.
        tokenizer: Its tokenizer.
        fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        whole: Its decoder with all projections.
        decoder: Its decoder with the projections of the recipe's roles.
        work: Where what is measured is kept, if anywhere.
        machine: Where it is worked on.
    """

    source: ModelSource | None
    model: Any
    tokenizer: Any
    fingerprint: str | None
    whole: Decoder
    decoder: Decoder
    work: WorkFolder | None
    machine: Machine

    @property
    def name(self) -> str:
        """The model as it was given, the name of its class if it was in memory."""
        return self.source.given if self.source is not None else type(self.model).__name__

    @property
    def collected(self) -> Decoder:
        """The decoder whose statistics are collected: what is kept is of all projections and serves any roles."""
        return self.decoder if self.work is None else self.whole


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
    recipe: Recipe,
    source: ModelSource | None,
    model: Any,
    tokenizer: Any,
    work: str | Path | None,
    machine: Machine | None,
    progress: ProgressCallback,
) -> Iterator[Subject]:
    """Load a model if it is not in memory, and put it into evaluation mode for as long as the context.

    Args:
        recipe: Its dtype and roles.
        source: What :func:`source_of` says of the model.
        model: The model as it was given.
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
        tokenizer, model = load_tokenizer(source), load_model(source, named_dtype(recipe.dtype))
        progress(Progress("loading", 1, 1, "model"))
    elif work is not None:
        raise RecipeError("what is measured on a model given in memory cannot be kept: give its folder, or no work=.")
    known = fingerprint(source) if source is not None else None
    machine = machine or Machine(model.device)
    kept = None
    if work is not None and known is not None:
        kept = WorkFolder(_of_rank(Path(work), machine.ranks), known, dtype_name(model.dtype), machine.ranks)
    whole = describe(model)
    training = model.training
    model.eval()
    try:
        yield Subject(source, model, tokenizer, known, whole, with_roles(whole, recipe.roles), kept, machine)
    finally:
        model.train(training)


def _of_rank(folder: Path, ranks: Ranks) -> Path:
    """Return the folder in which one of several processes keeps what all of them have measured."""
    return folder if ranks.first else folder / f"rank-{ranks.rank}"
