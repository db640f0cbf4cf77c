"""A plugin that serves compressed folders in vLLM: vLLM's own model classes, with factors in their linear layers.

vLLM finds :func:`register` through the entry point ``vllm.general_plugins``; a folder then needs no options::

    vllm serve ./llama-20

vLLM fuses projections that read one input (``qkv_proj``, ``gate_up_proj``). Each of them is a *part* here: a dense
weight, or coefficients and a basis that parts of other layers may share. Parts are computed separately and their
outputs concatenated.

With tensor parallelism, a layer that splits its outputs holds every whole basis and its own columns of the
coefficients. A layer that splits its inputs holds its own rows of the basis and the whole coefficients, and sums the
hidden vectors, whose size is the rank of the basis, over all processes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed import get_pp_group, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from basis_sharing.runtime.factorized_basis_sharing import decode_pivots
from basis_sharing.runtime.format_basis_sharing import QUANT_METHOD, Entry, Factors, FormatError, entries_of_config

_SHARDS = ("q", "k", "v")
_TRANSPOSING = ("gpt2",)  # architectures whose loader transposes every matrix, also those of factors


def register() -> None:
    """Do nothing: importing this module registers the method with vLLM."""


@register_quantization_config(QUANT_METHOD)
class BasisSharingVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """The ``quantization_config`` of a compressed folder, for vLLM.

    Args:
        entries: The entries in ``config.json``.

    Raises:
        FormatError: An entry is of an unsupported kind.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        super().__init__()
        self.groups: dict[str, Factors] = {}
        for entry in entries:
            if not isinstance(entry, Factors):
                raise FormatError(f"vLLM cannot serve entries of kind {entry.kind}: export the model first.")
            self.groups |= dict.fromkeys(entry.members, entry)
        self.bases: dict[tuple[str, int], Basis] = {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BasisSharingVllmConfig":
        """Return the configuration from the ``quantization_config`` of a folder.

        Raises:
            FormatError: It is malformed, or needs a newer version.
        """
        return cls(entries_of_config(config))

    def get_name(self) -> str:
        """Return the name of the method."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Return the supported dtypes of activations."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the smallest supported CUDA capability; 0: any."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return the files needed besides ``config.json``: none."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename projections for architectures that have other module names in vLLM."""
        self.groups = hf_to_vllm_mapper.apply_dict(self.groups)

    def get_quant_method(self, layer: Any, prefix: str) -> LinearMethodBase | None:
        """Return the method of a linear layer: factorized if a part of it is compressed, else vLLM's own; else None."""
        if not isinstance(layer, LinearBase):
            return None
        names = self.parts_of(prefix)
        if any(name in self.groups for name in names):
            return FactorizedMethod(self, names)
        return UnquantizedLinearMethod()

    def parts_of(self, prefix: str) -> list[str]:
        """Return the names of a layer's parts on disk."""
        parent, _, name = prefix.rpartition(".")
        if prefix in self.groups or name not in self.packed_modules_mapping:
            return [prefix]
        return [f"{parent}.{part}" for part in self.packed_modules_mapping[name]]

    def basis(self, group: Factors, inputs: int, layer: Any, dtype: torch.dtype) -> "Basis":
        """Return the basis of a group, which is created at its first use.

        Raises:
            FormatError: The layers of the group are on different stages of a pipeline.
        """
        if get_pp_group().world_size > 1 and len(group.members) > 1:
            raise FormatError(
                f"the basis of {group.owner} is shared between layers, which pipeline parallelism would tear apart: "
                "use tensor parallelism."
            )
        split = isinstance(layer, RowParallelLinear) and layer.tp_size > 1
        rank, ranks = (layer.tp_rank, layer.tp_size) if split else (0, 1)
        key = (group.owner, ranks)
        if key not in self.bases:
            self.bases[key] = Basis(group, inputs * ranks, rank, ranks, dtype)
        return self.bases[key]


class Basis(nn.Module):
    """The rows of a basis that this process needs.

    Args:
        group: The group of the basis.
        d_in: Number of inputs over all processes.
        rank: Rank of this process.
        ranks: Number of processes among which the inputs are split.
        dtype: Dtype of the weights.
    """

    pivots: Tensor | None
    places: Tensor | None
    rest: Tensor | None

    def __init__(self, group: Factors, d_in: int, rank: int, ranks: int, dtype: torch.dtype) -> None:
        super().__init__()
        first, last = rank * (d_in // ranks), (rank + 1) * (d_in // ranks)
        self.whole = ranks == 1
        columns = slice(first, last)
        indices: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        if group.pivots is not None:
            pivots, rest = (part.long().cpu() for part in decode_pivots(group.pivots, d_in, group.rank))
            mine, theirs = ((part >= first) & (part < last) for part in (pivots, rest))
            indices = (pivots[mine] - first, mine.nonzero()[:, 0], rest[theirs] - first)
            before = int((rest < first).sum())
            columns = slice(before, before + int(theirs.sum()))
        for name, values in zip(("pivots", "places", "rest"), indices, strict=True):
            on_device = None if values is None else values.to(torch.get_default_device())
            self.register_buffer(name, on_device, persistent=False)
        self._columns, stored = columns, columns.stop - columns.start
        self.weight = nn.Parameter(torch.empty(group.rank, stored, dtype=dtype), requires_grad=False)

    def load(self, tensor: Tensor) -> None:
        """Load this process' columns of the tensor on disk, which has shape ``[rank, stored]``."""
        self.weight.data.copy_(tensor[:, self._columns])

    def forward(self, x: Tensor) -> Tensor:
        """Return the contribution of this process' inputs to the hidden vector, shape ``[..., rank]``."""
        if self.pivots is None or self.places is None or self.rest is None:
            return nn.functional.linear(x, self.weight)
        hidden = nn.functional.linear(x.index_select(-1, self.rest), self.weight)
        if self.whole:
            return hidden + x.index_select(-1, self.pivots)
        return hidden.index_add(-1, self.places, x.index_select(-1, self.pivots))


class Part(nn.Module):
    """One projection of a layer: coefficients and their basis, or a dense weight.

    Args:
        basis: Its basis; None: it is dense.
        outputs: Number of outputs on this process.
        columns: Rank of the basis; for a dense part, number of inputs on this process.
        dtype: Dtype of the weights.
    """

    def __init__(self, basis: Basis | None, outputs: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.basis = basis
        self.weight = nn.Parameter(torch.empty(outputs, columns, dtype=dtype), requires_grad=False)


class FactorizedMethod(LinearMethodBase):  # type: ignore[misc]
    """Computes a layer whose parts are factorized or dense.

    Args:
        config: The configuration of the folder.
        names: Names of the layer's parts on disk.
    """

    def __init__(self, config: BasisSharingVllmConfig, names: list[str]) -> None:
        self.config, self.names = config, names

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Create the parts, and two parameters whose loaders pass tensors from disk to their part."""
        # Summing hidden vectors over the processes replaces summing the outputs.
        layer.adds_hidden = isinstance(layer, RowParallelLinear) and layer.tp_size > 1 and layer.reduce_results
        if layer.adds_hidden:
            layer.reduce_results = False
        # An architecture that fuses projections itself has one part for several of vLLM's partitions.
        sizes = output_partition_sizes if len(self.names) > 1 else [sum(output_partition_sizes)]
        layer.parts = nn.ModuleList()
        for name, size in zip(self.names, sizes, strict=True):
            group = self.config.groups.get(name)
            basis = None if group is None else self.config.basis(group, input_size_per_partition, layer, params_dtype)
            columns = input_size_per_partition if group is None else group.rank
            layer.parts.append(Part(basis, size, columns, params_dtype))

        def load_basis(_: nn.Parameter, tensor: Tensor, shard: str | int | None = None) -> None:
            layer.parts[_index(shard)].basis.load(_as_on_disk(tensor))

        def load_weight(_: nn.Parameter, tensor: Tensor, shard: str | int | None = None) -> None:
            part = layer.parts[_index(shard)]
            part.weight.data.copy_(self._own(layer, part, _as_on_disk(tensor), shard, output_partition_sizes))

        layer.weight, layer.basis = _routing_parameter(load_weight), nn.Module()
        layer.basis.weight = _routing_parameter(load_basis)

    def _own(self, layer: Any, part: Part, tensor: Tensor, shard: str | int | None, sizes: list[int]) -> Tensor:
        """Return the part of a weight on disk that belongs to this process."""
        if isinstance(layer, RowParallelLinear):
            width = part.weight.shape[1]
            start = layer.tp_rank * width if part.basis is None else 0
            return tensor[:, start : start + width]
        if not isinstance(layer, ColumnParallelLinear):
            return tensor
        if len(self.names) > 1 or len(sizes) == 1:
            return _rows(layer, tensor, _index(shard), len(part.weight))
        pieces = zip(tensor.split(_whole_sizes(layer)), sizes, strict=True)
        return torch.cat([_rows(layer, piece, index, size) for index, (piece, size) in enumerate(pieces)])

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map ``x`` of shape ``[..., inputs]`` to ``[..., outputs]``, both of this process."""
        results: list[Tensor] = []
        hidden: dict[int, Tensor] = {}
        for part in layer.parts:
            key = id(part.basis)
            if part.basis is not None and key not in hidden:
                own = part.basis(x)
                hidden[key] = tensor_model_parallel_all_reduce(own) if layer.adds_hidden else own
            results.append(nn.functional.linear(x if part.basis is None else hidden[key], part.weight))
        result = results[0] if len(results) == 1 else torch.cat(results, dim=-1)
        if layer.adds_hidden and not layer.skip_bias_add:
            bias = layer.bias  # vLLM passes it only on the first process, because it expects a sum to follow
        return result if bias is None else result + bias


def _routing_parameter(load: Callable[..., None]) -> nn.Parameter:
    """Return an empty parameter with a loader that passes tensors on disk to their part."""
    parameter = nn.Parameter(torch.empty(0), requires_grad=False)
    parameter.weight_loader = load  # type: ignore[attr-defined]
    return parameter


def _index(shard: str | int | None) -> int:
    """Return the index of the part of a shard of vLLM."""
    return _SHARDS.index(shard) if isinstance(shard, str) else shard or 0


def _rows(layer: Any, tensor: Tensor, index: int, size: int) -> Tensor:
    """Return this process' rows of one part of a layer that splits its outputs."""
    rank = layer.tp_rank
    if isinstance(layer, QKVParallelLinear) and index > 0:
        rank //= layer.num_kv_head_replicas
    return tensor[rank * size : (rank + 1) * size]


def _whole_sizes(layer: Any) -> list[int]:
    """Return the number of outputs of each part of a fused layer over all processes."""
    if isinstance(layer, QKVParallelLinear):
        heads, widths = layer.total_num_kv_heads, (layer.head_size, layer.v_head_size)
        return [layer.total_num_heads * layer.head_size, *(heads * width for width in widths)]
    sizes: list[int] = layer.output_sizes
    return sizes


def _as_on_disk(tensor: Tensor) -> Tensor:
    """Return a loaded tensor in its orientation on disk, undoing the transposition of an architecture's loader."""
    model_type = get_current_vllm_config().model_config.hf_config.model_type
    return tensor.T if model_type in _TRANSPOSING else tensor
