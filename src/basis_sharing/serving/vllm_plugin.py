"""A plugin that serves compressed folders in vLLM: vLLM's own model classes, with factors in their linear layers.

vLLM finds :func:`register` through the entry point ``vllm.general_plugins``; a folder then needs no options::

    vllm serve ./llama-20

vLLM fuses projections that read one input (``qkv_proj``, ``gate_up_proj``). Here such a layer has *parts*: a dense
weight for one or more projections in a row, a weight in few bits, or coefficients and a basis that parts of other
layers may share. The input is put in order once, bases that are stored side by side are one product, and the outputs of
the parts are concatenated. Matrices in few bits are multiplied as in transformers, by :class:`RoundedLinear`.

With tensor parallelism, a layer that splits its outputs holds every whole basis and its own columns of the
coefficients. A layer that splits its inputs holds its own rows of the basis and the whole coefficients, and sums the
hidden vectors, whose size is the rank of the basis, over all processes.
"""

from collections.abc import Iterable
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed import get_pp_group, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from basis_sharing.runtime.config_basis_sharing import entries_of_config
from basis_sharing.runtime.entries_basis_sharing import Bits, Embeddings, Factors
from basis_sharing.runtime.expert_entries_basis_sharing import Narrow
from basis_sharing.runtime.format_basis_sharing import QUANT_METHOD, Entry, FormatError
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear
from basis_sharing.serving.vllm_embeddings import RoundedEmbeddingMethod
from basis_sharing.serving.vllm_experts import NarrowExpertsMethod
from basis_sharing.serving.vllm_parts import Basis, Part, Place, numbers_of, routing_parameter

_SHARDS = ("q", "k", "v")
_TENSORS = ("weight", "scales", "zero_points")  # of a matrix on disk
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
        self.groups: dict[str, Factors | Bits] = {}
        self.tables: list[Embeddings] = []
        self.experts: dict[str, Narrow] = {}
        for entry in entries:
            if isinstance(entry, Embeddings):
                self.tables.append(entry)
                continue
            if isinstance(entry, Narrow):
                self.experts[entry.owner] = entry
                continue
            if not isinstance(entry, (Factors, Bits)):
                raise FormatError(
                    f"vLLM cannot serve entries of kind {entry.kind}: compress without them, or export the model first."
                )
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
        self.experts = hf_to_vllm_mapper.apply_dict(self.experts)

    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None:
        """Return the method of a layer: ours if it is compressed; else vLLM's own, or None for its default."""
        if isinstance(layer, VocabParallelEmbedding):
            # Architectures do not name the layer; the embeddings come first, then a head that is not tied to them.
            table = self.tables[-1 if isinstance(layer, ParallelLMHead) else 0] if self.tables else None
            return None if table is None else RoundedEmbeddingMethod(table)
        if isinstance(layer, RoutedExperts):
            experts = self.experts.get(prefix)
            return None if experts is None else NarrowExpertsMethod(layer.moe_config, experts)
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
        if split and group.basis_grid is not None:
            raise FormatError(
                f"the basis of {group.owner} is in few bits, whose groups of inputs tensor parallelism would tear "
                "apart: use one process."
            )
        rank, ranks = (layer.tp_rank, layer.tp_size) if split else (0, 1)
        key = (group.holder, ranks)
        if key not in self.bases:
            self.bases[key] = Basis(group, inputs * ranks, rank, ranks, dtype)
        return self.bases[key]


class FactorizedMethod(LinearMethodBase):  # type: ignore[misc]
    """Computes a layer whose parts are factorized or dense.

    Args:
        config: The configuration of the folder.
        names: Names of the layer's projections on disk.
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
        """Create the parts, and two parameters whose loaders pass tensors from disk to their place."""
        # Summing hidden vectors over the processes replaces summing the outputs.
        split = isinstance(layer, RowParallelLinear) and layer.tp_size > 1 and layer.reduce_results
        layer.adds_hidden = split and isinstance(self.config.groups[self.names[0]], Factors)
        if layer.adds_hidden:
            layer.reduce_results = False
        # An architecture that fuses projections itself has one part for several of vLLM's partitions.
        sizes = output_partition_sizes if len(self.names) > 1 else [sum(output_partition_sizes)]
        layer.parts, places = nn.ModuleList(), list[Place]()
        named = zip(self.names, sizes, strict=True)
        for entry, found in groupby(named, lambda each: self.config.groups.get(each[0])):
            for own in [list(found)] if entry is None else [[each] for each in found]:
                basis, columns = None, input_size_per_partition
                if isinstance(entry, Factors):
                    basis = self.config.basis(entry, input_size_per_partition, layer, params_dtype)
                    columns = entry.rank
                stops = list(accumulate(size for _, size in own))
                part = Part(entry, basis, stops[-1], columns, params_dtype)
                layer.parts.append(part)
                places += [Place(part, stop - size, stop) for stop, (_, size) in zip(stops, own, strict=True)]

        def load_basis(name: str, tensor: Tensor, shard: str | int | None) -> None:
            basis = places[_index(shard)].part.basis
            assert basis is not None
            matrix = basis.matrix
            basis.load(name, numbers_of(name, _as_on_disk(tensor), matrix.grid, matrix.inputs, matrix.outputs))

        def load_weight(name: str, tensor: Tensor, shard: str | int | None) -> None:
            place = places[_index(shard)]
            matrix, inputs = place.part.matrix, place.part.columns * _divided(layer, place)
            outputs = self._outputs(layer, place, shard)
            numbers = numbers_of(name, _as_on_disk(tensor), matrix.grid, inputs, outputs)
            own = self._own(layer, place, numbers, shard, output_partition_sizes)
            matrix.load(name, own, slice(place.start, place.stop))

        layer.basis = nn.Module()
        for name in _TENSORS:
            setattr(layer, name, routing_parameter(name, load_weight))
            setattr(layer.basis, name, routing_parameter(name, load_basis))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Bring matrices in few bits into the layout of their products."""
        for module in layer.modules():
            if isinstance(module, RoundedLinear):
                module.arrange()

    def _outputs(self, layer: Any, place: Place, shard: str | int | None) -> int:
        """Return the number of outputs of a projection over all processes."""
        if not isinstance(layer, ColumnParallelLinear) or layer.tp_size == 1:
            return place.stop - place.start
        if len(self.names) > 1:
            return _whole_sizes(layer)[_index(shard)]
        return int(layer.output_size)

    def _own(self, layer: Any, place: Place, tensor: Tensor, shard: str | int | None, sizes: list[int]) -> Tensor:
        """Return the part of a weight, or of its scales or zero points, that belongs to this process."""
        if isinstance(layer, RowParallelLinear):
            width = tensor.shape[1] // _divided(layer, place)
            start = layer.tp_rank * width if place.part.basis is None else 0
            return tensor[:, start : start + width]
        if not isinstance(layer, ColumnParallelLinear):
            return tensor
        if len(self.names) > 1 or len(sizes) == 1:
            return _rows(layer, tensor, _index(shard), place.stop - place.start)
        pieces = zip(tensor.split(_whole_sizes(layer)), sizes, strict=True)
        return torch.cat([_rows(layer, piece, index, size) for index, (piece, size) in enumerate(pieces)])

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map ``x`` of shape ``[..., inputs]`` to ``[..., outputs]``, both of this process."""
        results: list[Tensor] = []
        ordered: dict[str, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        for part in layer.parts:
            basis = part.basis
            if basis is None:
                results.append(part(x))
                continue
            if id(basis) not in hidden:
                own = x
                if basis.order is not None:
                    if basis.order_name not in ordered:
                        ordered[basis.order_name] = x.index_select(-1, basis.order)
                    own = ordered[basis.order_name]
                own = basis(own)
                hidden[id(basis)] = tensor_model_parallel_all_reduce(own) if layer.adds_hidden else own
            results.append(part(hidden[id(basis)]))
        result = results[0] if len(results) == 1 else torch.cat(results, dim=-1)
        if layer.adds_hidden and not layer.skip_bias_add:
            bias = layer.bias  # vLLM passes it only on the first process, because it expects a sum to follow
        return result if bias is None else result + bias


def _divided(layer: Any, place: Place) -> int:
    """Return among how many processes the inputs of a part are divided.

    Raises:
        FormatError: They cannot be, because a group of inputs would be torn apart.
    """
    if not isinstance(layer, RowParallelLinear) or place.part.basis is not None:
        return 1
    grid, count = place.part.matrix.grid, int(layer.tp_size)
    if grid is not None and count > 1 and place.part.columns % grid.group:
        raise FormatError(
            f"groups of {grid.group} inputs cannot be divided among {count} processes: compress with a smaller "
            "--scale-group, or use one process."
        )
    return count


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
