"""Exact sizes of a model in memory and on disk, by role."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from basis_sharing.models.decoder import block_parameters, is_matrix, left_dense_name
from basis_sharing.models.family import ROLES, Decoder
from basis_sharing.models.multimodal import towers
from basis_sharing.models.weight_files import weight_files
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear

EMBEDDINGS = "embeddings"
HEAD = "output head"
"""Names of rows of :func:`role_table`; a head that is tied has no parameters there."""


@dataclass(frozen=True)
class RoleRow:
    """One row of the table of the parts of a model.

    Attributes:
        name: A role (``"q"``), the name of a left-dense weight, or another part (``"embeddings"``).
        shapes: Distinct shapes, ``(d_in, d_out)`` for roles and as stored for the rest; empty for mixtures.
        count: Number of tensors counted.
        parameters: Number of parameters; shared ones count once, in the first part that has them.
        bytes: Bytes in memory, buffers included.
        share: Fraction of the model's memory, 0 to 1.
        compressible: Whether compression applies to it.
        reason: Why it is not compressible, or where a shared weight is counted; empty for roles.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    count: int
    parameters: int
    bytes: int
    share: float
    compressible: bool
    reason: str = ""

    def saved_bytes(self, ratio: float) -> int:
        """Return the bytes of memory that are saved when this fraction of the row's parameters is removed."""
        return round(self.bytes * ratio) if self.compressible else 0


def memory_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; tensors that share memory count once."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _unique_tensors(model))


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once, and packed ones by the numbers they hold."""
    counted = packed_parameters(model)
    tensors = (tensor for _, tensor in _unique_tensors(model) if isinstance(tensor, nn.Parameter))
    return sum(counted.get(tensor, tensor.numel()) for tensor in tensors)


def packed_parameters(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how many parameters of the model the tensors of weights in few bits hold."""
    return {
        tensor: count
        for module in model.modules()
        if isinstance(module, RoundedLinear)
        for tensor, count in module.counted().items()
    }


def weight_file_bytes(folder: str | Path) -> int:
    """Return the bytes of a model's weight files.

    Args:
        folder: Folder of a model, or a single ``.gguf`` file.

    Raises:
        ModelError: There are no weight files.
    """
    return sum(path.stat().st_size for path in weight_files(Path(folder)))


def role_table(model: PreTrainedModel, decoder: Decoder) -> list[RoleRow]:
    """Return the table of the parts of a model, for ``inspect``.

    The rows are the roles in order, embeddings and output head, the weights left dense inside the blocks, the towers
    and projectors of a multimodal model, and everything else; their parameters sum to :func:`parameter_count`, their
    bytes to :func:`memory_bytes`.

    Args:
        model: The model, real or on the meta device.
        decoder: Its description by :func:`~basis_sharing.models.decoder.describe`.
    """
    labels = _labels(model, decoder)
    tensors: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in _unique_tensors(model):
        tensors[labels.get(name, _OTHER)].append(tensor)
    total = memory_bytes(model)

    def row(label: str, compressible: bool, reason: str, shapes: set[tuple[int, ...]] | None = None) -> RoleRow:
        members = tensors.pop(label, [])
        size = sum(t.numel() * t.element_size() for t in members)
        return RoleRow(
            name=label,
            shapes=tuple(sorted({tuple(t.shape) for t in members} if shapes is None else shapes)),
            count=len(members),
            parameters=sum(t.numel() for t in members if isinstance(t, nn.Parameter)),
            bytes=size,
            share=size / total,
            compressible=compressible,
            reason=reason,
        )

    shapes_of: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for p in decoder.parts:
        shapes_of[p.role].add((p.d_in, p.d_out))
    rows = [row(role, True, "", shapes_of[role]) for role in ROLES if role in shapes_of]
    rows.append(row(EMBEDDINGS, False, "stay as they are, or in 8 bits (--embedding-bits 8)"))
    head = model.get_output_embeddings()
    if head is not None:
        tied = next(head.parameters()) is next(model.get_input_embeddings().parameters())
        reason = "tied to the embeddings and counted there" if tied else "the output head stays as it is"
        rows.append(row(HEAD, False, reason))
    rows += [row(left.name, False, left.reason) for left in decoder.left_dense]
    rows += [row(tower, False, _BESIDE, set()) for tower in towers(model)]
    rows.append(row(_OTHER, False, "small: stays as it is", set()))
    return rows


def starting_point(rows: Sequence[RoleRow]) -> tuple[RoleRow, ...]:
    """Return the compressible roles that hold the most memory: one, or several of the same size."""
    most = max(row.bytes for row in rows if row.compressible)
    return tuple(row for row in rows if row.compressible and row.bytes == most)


_OTHER = "norms, biases and other"
_BESIDE = "beside the language model: stays as it is, to the byte"


def _labels(model: PreTrainedModel, decoder: Decoder) -> dict[str, str]:
    """Return the label of the row of each parameter by full name; unlisted parameters belong to the last row."""
    labels = {f"{p.name}.weight": p.role for p in decoder.projections}
    labels |= {f"{e.name}.{name}": e.role for e in decoder.experts for name in e.weights if not name.endswith("bias")}
    for block, path, parameter in block_parameters(model, decoder.blocks):
        name = f"{block}.{path}"
        if name not in labels and is_matrix(path, parameter):
            labels[name] = left_dense_name(decoder.blocks, path)
    for tower, module in towers(model).items():
        labels |= {f"{tower}.{name}": tower for name, _ in (*module.named_parameters(), *module.named_buffers())}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            labels.setdefault(f"{name}.weight", EMBEDDINGS)
        elif module is model.get_output_embeddings():
            labels.setdefault(f"{name}.weight", HEAD)
    return labels


def _unique_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer with its first name, skipping those that share memory with an earlier one."""
    alive: list[object] = []
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            storage = tensor.untyped_storage()
            key = (storage._cdata, int(tensor.storage_offset()), tuple(tensor.shape))
            if key not in seen:
                seen.add(key)
                alive.append(storage)
                yield name, tensor
