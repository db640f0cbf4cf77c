"""Base class of treatments, which offer options for scopes of projections, solve for an option, and install it.

A treatment is registered with :func:`register` and referred to by its kind. For checkpoints to be loadable, the modules
of its entries (a :class:`~basis_sharing.runtime.layers_basis_sharing.Kind`) have to be registered with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from basis_sharing.costs.base import Cost, Priced
from basis_sharing.models.family import Compressible, Decoder
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.registry import Registry
from basis_sharing.run.stages import Shapes
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.layers_basis_sharing import Kind, kind_of, register_kind
from basis_sharing.runtime.modeling_basis_sharing import declare_ties
from basis_sharing.runtime.surgery import set_parameters
from basis_sharing.weightings.base import Weighting

Floats = NDArray[np.float64]
CurveKey = tuple[str, ...]
"""Name of a treatment, then the names of the projections of a scope."""
Curves = MutableMapping[CurveKey, Floats]


class Options(Sequence[Entry], Priced):
    """A sequence of options of one treatment for one scope, priced together: the sizes of its tensors are arrays."""


@dataclass(frozen=True)
class Candidate:
    """A scope with the options of one treatment and their losses.

    Attributes:
        scope: The projections, by block and then in their order within a block, or the experts of one block.
        options: The options.
        losses: Expected loss rise of every option in nats per token, shape ``[options]``.
    """

    scope: tuple[Compressible, ...]
    options: Sequence[Entry]
    losses: Floats


@dataclass(frozen=True)
class Search:
    """The inputs of a search for candidates.

    Attributes:
        model: The dense model.
        decoder: Its structure.
        weighting: Weighting of errors, with losses in nats per token.
        cost: The currency of the target.
        planning: Settings: the kinds of sharing and the ranks that are allowed.
        curves: Cache of measured losses by treatment and scope; new ones are added.
        processes: The processes that divide the measurements among them; all of them get the same candidates.
        progress: Receives progress events.
        multiples: Returns what the ranks of a group are multiples of; None: the number in the settings, or 1.
    """

    model: Any
    decoder: Decoder
    weighting: Weighting
    cost: Cost
    planning: Planning = field(default_factory=Planning)
    curves: Curves = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)
    progress: ProgressCallback = silent
    multiples: Callable[[Sequence[Compressible]], int] | None = None

    def multiple(self, scope: Sequence[Compressible]) -> int:
        """Return what the ranks of a group are multiples of."""
        if self.multiples is not None:
            return self.multiples(scope)
        given = self.planning.rank_multiple
        return 1 if given == "auto" else given


@dataclass(frozen=True)
class Outcome:
    """The result of solving one entry of a plan.

    Attributes:
        entry: The entry as carried out, complete for loading; it may differ from the planned one.
        tensors: The tensors by their names on disk, in the layout of the modules.
        loss: The loss in the unit of the weighting (nats per token for the planner's).
        relative_loss: The loss as a fraction of the loss at rank 0.
        ridge: Relative ridge that was added to the second moment, 0 for none.
        notes: Sentences for the user.
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
        kind: Its name, which identifies its entries in plans and checkpoints.
        summary: One-line description.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def candidates(self, search: Search) -> Iterable[Candidate]:
        """Return the candidates of the treatment: scopes with their options and losses.

        Raises:
            NumericalError: A weight or a statistic contains NaN or infinity.
        """

    def problem(self, weighting: Weighting, model: Any, scope: Sequence[Any]) -> Sequence[Any]:
        """Return what an entry for a scope is solved from: its members with their weightings."""
        return weighting.problem(model, scope)

    @abstractmethod
    def solve(self, problem: Sequence[Any], entry: Any, dtype: torch.dtype) -> Outcome:
        """Return the outcome of an entry; no model is read or changed.

        Args:
            problem: What :meth:`problem` returns for its members.
            entry: An entry of this kind.
            dtype: Dtype of the model, in which tensors are stored unless the entry specifies another one.

        Raises:
            NumericalError: A weight or a statistic contains NaN or infinity.
        """

    def install(self, model: nn.Module, outcome: Outcome) -> None:
        """Replace the members in the model by modules that hold the tensors of the outcome; biases are kept."""
        install(model, outcome)

    def planning_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return the expected time to measure all candidates, in seconds."""
        return sum(shapes.measuring_seconds(p) for p in shapes.decoder.projections) / shapes.processes

    def solving_seconds(self, shapes: Shapes, planning: Planning) -> float:
        """Return how long it takes to carry out entries for all projections."""
        return sum(shapes.solving_seconds(p) for p in shapes.decoder.projections) / shapes.processes


PLUGINS = "basis_sharing.treatments"
"""Group of entry points by which other packages name the modules of their treatments."""
TREATMENTS: Registry[Treatment] = Registry("treatment", "basis_sharing.treatments", PLUGINS)


def register(treatment: Treatment, kind: Kind | None = None) -> Treatment:
    """Register a treatment, and the kind of modules that its entries are loaded as.

    Raises:
        RecipeError: Another treatment is registered under this name.
    """
    TREATMENTS.register(treatment.kind, treatment)
    if kind is not None:
        register_kind(treatment.kind, kind)
    return treatment


def install(model: nn.Module, outcome: Outcome) -> None:
    """Install modules that hold the tensors of an outcome into a model; see :func:`place`."""
    place(model, outcome.entry, outcome.tensors)


def place(model: nn.Module, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
    """Install the modules of an entry into a model, with their tensors by the names on disk.

    Tensors get the device and, unless the entry specifies another one, the dtype of the weights they replace.
    """
    kind = kind_of(entry)
    originals = {name: model.get_submodule(name) for name in entry.members}
    ties = kind.install(model, entry)
    declare_ties(model, ties)
    renamed = kind.renamed(entry)
    like = next(originals[entry.owner].parameters())
    placed: dict[str, nn.Parameter] = {}
    for name, tensor in tensors.items():
        own = not tensor.is_floating_point() or any(name.endswith(f".{part}") for part in entry.tensors)
        data = tensor.to(device=like.device, dtype=tensor.dtype if own else like.dtype).contiguous()
        trainable = like.requires_grad and data.is_floating_point()
        placed[renamed.get(name, name)] = nn.Parameter(data, requires_grad=trainable)
    for name, original in originals.items():
        bias = getattr(original, "bias", None)  # embeddings have none
        if isinstance(bias, nn.Parameter):
            placed[renamed.get(f"{name}.bias", f"{name}.bias")] = bias
        model.get_submodule(name).train(original.training)
    placed |= {alias: placed[owner] for alias, owner in ties.items()}
    set_parameters(model, placed)
    kind.finish(model, entry)
