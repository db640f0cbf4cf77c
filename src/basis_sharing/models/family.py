"""The structure of a family of models as data: its decoder blocks, projections and their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from basis_sharing.runtime.format_basis_sharing import Product

EXPERTS = "experts"
MLP = ("gate", "up", "gate_up", "down")
"""The roles of an MLP, in the order in which they act."""
SHARED = "shared_"
"""What the roles of the expert that all tokens use begin with."""
ROLES = (
    "q",
    "k",
    "v",
    "kv",
    "qkv",
    "q_a",
    "kv_a",
    "q_b",
    "kv_b",
    "o",
    *MLP,
    EXPERTS,
    *(f"{SHARED}{role}" for role in MLP),
)
"""All roles of projections and experts, in the order in which they act within a decoder block."""


@dataclass(frozen=True)
class Family:
    """A family of decoder-only models, declared once.

    Attributes:
        name: Name shown to the user, e.g. ``"llama"``.
        model_types: Values of ``config.model_type`` that belong to the family.
        blocks: Module path of the list of decoder blocks, e.g. ``"model.layers"``.
        inputs: Projections by the input they read: input name -> role -> module path inside a block. Projections
            under one input name read the same tensor.
        shared_roles: Roles whose projections share a basis across layers in the preset ``basis-sharing``.
        shared_roles_source: Source of that choice: the paper, or an analogy.
        needs_bos: Whether the models need the beginning-of-sequence token at the start of every window.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    inputs: Mapping[str, Mapping[str, str]]
    shared_roles: tuple[str, ...]
    shared_roles_source: str
    needs_bos: bool = False


@dataclass(frozen=True)
class Compressible:
    """A compressible part of a decoder block: a projection, or the experts of a mixture.

    Attributes:
        name: Module path in the model, e.g. ``"model.layers.3.self_attn.q_proj"``.
        block: Index of the decoder block in depth order.
        role: Its role, one of :data:`ROLES`.
        input: Name of its input; parts of a block have the same name exactly if they read the same tensor.
        d_in: Number of input features.
        d_out: Number of output features; of experts the numbers in their weights for each input feature.
    """

    name: str
    block: int
    role: str
    input: str
    d_in: int
    d_out: int

    @property
    def products(self) -> tuple[Product, ...]:
        """The products with its weights for one token."""
        return (Product(self.d_in, self.d_out),)


@dataclass(frozen=True)
class Projection(Compressible):
    """One compressible weight matrix of a decoder block.

    Attributes:
        bias: Whether it has a bias.
        transposed: Whether the stored weight is ``[d_in, d_out]`` (``Conv1D``) instead of ``[d_out, d_in]``.
    """

    bias: bool
    transposed: bool


@dataclass(frozen=True)
class Experts(Compressible):
    """The experts of one decoder block, which read one input and write one output, in one module.

    Attributes:
        count: Number of experts.
        active: Number of experts per token.
        weights: Names of the parameters of the module.
        reading: Name of the weight that reads their input, ``gate_up_proj`` or ``up_proj``; None: how a single expert
            computes is not known.
        neurons: Number of neurons of an expert.
    """

    count: int
    active: int
    weights: tuple[str, ...]
    reading: str | None = None
    neurons: int = 0

    @property
    def products(self) -> tuple[Product, ...]:
        """The products with the weights of the experts of one token."""
        return (Product(self.d_in, self.d_out // self.count, self.active),)

    @property
    def reads(self) -> Projection:
        """The identity before all experts; its input is what they read, its output too."""
        return self._identity("reads")

    @property
    def writes(self) -> Projection:
        """The identity after the experts; its input is the weighted sum of what they compute, its output too."""
        return self._identity("writes")

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """``(inputs, outputs)`` of the two matrices of an expert by name; empty if it is not known how it computes."""
        if self.reading is None:
            return {}
        read = self.d_out // self.count - self.neurons
        return {self.reading: (self.d_in, read), "down_proj": (self.neurons, self.d_in)}

    def _identity(self, side: str) -> Projection:
        name = f"{self.name}.{side}"
        return Projection(name, self.block, self.role, f"{name}.input", self.d_in, self.d_in, False, False)


@dataclass(frozen=True)
class LeftDense:
    """A weight of the decoder blocks that is not compressed, and why.

    Attributes:
        name: Parameter or module path with the block number replaced by ``*``.
        reason: One sentence for the user.
        parameters: Number of parameters over all blocks.
    """

    name: str
    reason: str
    parameters: int


@dataclass(frozen=True)
class Decoder:
    """The compressible structure of one model.

    Attributes:
        family: The declared or detected family.
        blocks: Module paths of the decoder blocks in depth order.
        projections: Every compressible projection, ordered by block, then by role.
        left_dense: Weights inside the blocks that are not compressed (norms and biases are not listed).
        experts: The compressible experts, ordered by block.
    """

    family: Family
    blocks: tuple[str, ...]
    projections: tuple[Projection, ...]
    left_dense: tuple[LeftDense, ...] = field(default=())
    experts: tuple[Experts, ...] = field(default=())

    @cached_property
    def parts(self) -> tuple[Compressible, ...]:
        """Everything that can be compressed, ordered by block."""
        return tuple(sorted((*self.projections, *self.experts), key=lambda part: part.block))

    @cached_property
    def measured(self) -> tuple[Projection, ...]:
        """The projections whose inputs and loss gradients are measured: all, and the identities around experts."""
        around = (side for experts in self.experts for side in (experts.reads, experts.writes))
        return tuple(sorted((*self.projections, *around), key=lambda part: part.block))

    @cached_property
    def by_name(self) -> Mapping[str, Compressible]:
        """Everything that can be compressed by its module path."""
        return {part.name: part for part in self.parts}

    @cached_property
    def projection_by_name(self) -> Mapping[str, Projection]:
        """Every compressible projection by its module path."""
        return {projection.name: projection for projection in self.projections}

    def of_block(self, index: int) -> list[Projection]:
        """Return the compressible projections of one block."""
        return [projection for projection in self.projections if projection.block == index]

    def path_in_block(self, part: Compressible) -> str:
        """Return the module path of a part inside its block."""
        return part.name.removeprefix(f"{self.blocks[part.block]}.")

    @cached_property
    def without_experts(self) -> "Decoder":
        """The decoder in which experts stay dense."""
        return replace(self, experts=())
