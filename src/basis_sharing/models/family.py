"""The structure of a family of models as data: its decoder blocks, projections and their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

ROLES = ("q", "k", "v", "kv", "qkv", "o", "gate", "up", "gate_up", "down")
"""All roles of projections, in the order in which they act within a decoder block."""


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
class Projection:
    """One compressible weight matrix of a decoder block.

    Attributes:
        name: Module path in the model, e.g. ``"model.layers.3.self_attn.q_proj"``.
        block: Index of the decoder block in depth order.
        role: Its role, one of :data:`ROLES`.
        input: Name of its input; projections of a block have the same name exactly if they read the same tensor.
        d_in: Number of input features.
        d_out: Number of output features.
        bias: Whether it has a bias.
        transposed: Whether the stored weight is ``[d_in, d_out]`` (``Conv1D``) instead of ``[d_out, d_in]``.
    """

    name: str
    block: int
    role: str
    input: str
    d_in: int
    d_out: int
    bias: bool
    transposed: bool


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
    """

    family: Family
    blocks: tuple[str, ...]
    projections: tuple[Projection, ...]
    left_dense: tuple[LeftDense, ...] = field(default=())

    @cached_property
    def by_name(self) -> Mapping[str, Projection]:
        """Every compressible projection by its module path."""
        return {projection.name: projection for projection in self.projections}

    def of_block(self, index: int) -> list[Projection]:
        """Return the compressible projections of one block."""
        return [projection for projection in self.projections if projection.block == index]

    def path_in_block(self, projection: Projection) -> str:
        """Return the module path of a projection inside its block."""
        return projection.name.removeprefix(f"{self.blocks[projection.block]}.")
