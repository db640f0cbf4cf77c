"""What a treatment is: it offers options for scopes of projections, solves for the chosen one, and installs it.

A treatment registers itself with :func:`register`; the rest of the package knows it by its kind. To be loaded again,
its entries need a kind of modules (:mod:`basis_sharing.runtime.layers_basis_sharing`), registered beside it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from basis_sharing.costs.base import Cost, Priced
from basis_sharing.linalg.truncation import Member
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.registry import Registry
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.format_basis_sharing import PLUGINS, Entry
from basis_sharing.runtime.layers_basis_sharing import Kind, kind_of, register_kind
from basis_sharing.runtime.modeling_basis_sharing import declare_ties
from basis_sharing.weightings.base import Weighting

Floats = NDArray[np.float64]
CurveKey = tuple[str, ...]
"""Name of a treatment, then the names of the projections of a scope."""
Curves = MutableMapping[CurveKey, Floats]


class Options(Sequence[Entry], Priced):
    """Options of one treatment for one scope, priced all at once: their sizes are arrays."""


@dataclass(frozen=True)
class Candidate:
    """A scope, the options a treatment has for it, and what each of them loses.

    Attributes:
        scope: Its projections, by block and then in their order within a block.
        options: What they may be turned into.
        losses: Expected loss rise of every option in nats per token.
    """

    scope: tuple[Projection, ...]
    options: Sequence[Entry]
    losses: Floats


@dataclass(frozen=True)
class Search:
    """What candidates are looked for in.

    Attributes:
        model: The dense model.
        decoder: Its structure.
        weighting: What errors are weighted with; losses are in nats per token.
        cost: The currency of the target.
        planning: Which kinds of sharing are allowed, and which ranks.
        curves: Losses that are known, by treatment and scope; read and added to.
        processes: The processes that divide the measurements among them; all of them find the same.
        progress: Receives progress events.
    """

    model: Any
    decoder: Decoder
    weighting: Weighting
    cost: Cost
    planning: Planning = field(default_factory=Planning)
    curves: Curves = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)
    progress: ProgressCallback = silent


@dataclass(frozen=True)
class Outcome:
    """What became of one entry of a plan.

    Attributes:
        entry: The entry as it was carried out, with all that loading it needs.
        tensors: Its tensors by their names on disk, as its modules hold them.
        loss: What is lost in the unit of the weighting (nats per token for the planner's).
        relative_loss: That, as a share of what would be lost if nothing were kept.
        ridge: Relative ridge the second moment needed, 0 for none.
        notes: What a reader has to know, one sentence each.
    """

    entry: Entry
    tensors: dict[str, Tensor]
    loss: float
    relative_loss: float
    ridge: float = 0.0
    notes: tuple[str, ...] = ()


class Treatment(ABC):
    """A way to make projections cheaper.

    Attributes:
        kind: Its name, which tags its entries in plans and checkpoints.
        summary: One line for people.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return the scopes the treatment has options for, with what each option loses.

        Raises:
            NumericalError: A weight or a statistic contains NaN or infinity.
        """

    @abstractmethod
    def solve(self, problem: Sequence[Member], entry: Any, dtype: torch.dtype) -> Outcome:
        """Carry out an entry: tensors in, tensors out.

        Args:
            problem: The members of the entry with their weightings.
            entry: An entry of this kind.
            dtype: Dtype of the model, in which numbers are stored where the entry does not say otherwise.

        Raises:
            NumericalError: A weight or a statistic contains NaN or infinity.
        """

    def install(self, model: nn.Module, outcome: Outcome) -> None:
        """Replace the members by modules of this kind that hold the tensors; biases are kept."""
        install(model, outcome)

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to measure all candidates."""
        return sum(shapes.solving_seconds(p, vectors=False) for p in shapes.decoder.projections) / shapes.processes

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to carry out entries for all projections."""
        return sum(shapes.solving_seconds(p, vectors=True) for p in shapes.decoder.projections) / shapes.processes


TREATMENTS: Registry[Treatment] = Registry("treatment", "basis_sharing.treatments", PLUGINS)


def register(treatment: Treatment, kind: Kind | None = None) -> Treatment:
    """Register a treatment, and with it the kind of modules its entries are loaded as.

    Raises:
        RecipeError: Another treatment has this name.
    """
    TREATMENTS.register(treatment.kind, treatment)
    if kind is not None:
        register_kind(treatment.kind, kind)
    return treatment


def install(model: nn.Module, outcome: Outcome) -> None:
    """Put the tensors of an outcome into a model, in modules of its kind.

    Numbers get the device and, where the entry does not say otherwise, the dtype of the weights they replace.
    """
    entry, kind = outcome.entry, kind_of(outcome.entry)
    originals = {name: model.get_submodule(name) for name in entry.members}
    ties = kind.install(model, entry)
    declare_ties(model, ties)
    renamed = kind.renamed(entry)
    like = originals[entry.owner].weight
    assert isinstance(like, nn.Parameter)
    placed: dict[str, nn.Parameter] = {}
    for name, tensor in outcome.tensors.items():
        own = not tensor.is_floating_point() or any(name.endswith(f".{part}") for part in entry.tensors)
        data = tensor.to(device=like.device, dtype=tensor.dtype if own else like.dtype).contiguous()
        trainable = like.requires_grad and data.is_floating_point()
        placed[renamed.get(name, name)] = nn.Parameter(data, requires_grad=trainable)
    for name, original in originals.items():
        if isinstance(original.bias, nn.Parameter):
            placed[renamed.get(f"{name}.bias", f"{name}.bias")] = original.bias
        model.get_submodule(name).train(original.training)
    placed |= {alias: placed[owner] for alias, owner in ties.items()}
    for name, parameter in placed.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, parameter)
    kind.finish(model, entry)
