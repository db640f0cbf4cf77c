# SPDX-License-Identifier: Apache-2.0
"""The installation of the modules of a compressed model from the entries of a checkpoint.

This file is copied into every checkpoint. A *kind* defines how an entry is loaded: :class:`FactorsKind` replaces
projections by :class:`FactorizedLinear`, :class:`BitsKind` by :class:`RoundedLinear`; :class:`NarrowKind` replaces
experts by :class:`NarrowExperts`, :class:`ExpertFactorsKind` by :class:`FactorizedExperts`; and :class:`EmbeddingsKind`
embeddings and output head by modules with one table. Other kinds are registered by the packages that define them.
"""

from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .entries_basis_sharing import Bits, Embeddings, Factors
from .expert_entries_basis_sharing import ExpertFactors, Narrow
from .experts_basis_sharing import FactorizedExperts, NarrowExperts, native_experts, reading_weight, width_axes
from .factorized_basis_sharing import FactorizedLinear, full_basis, input_order, share_readings
from .format_basis_sharing import Entry, FormatError, Grid, grid_tensors
from .rounded_basis_sharing import RoundedEmbedding, RoundedLinear

_ALIGNMENT = 64  # bytes


class Kind(Protocol):
    """The loading of entries of one kind."""

    def install(self, model: nn.Module, entry: Any) -> dict[str, str]:
        """Replace the members by modules on the meta device; return tied parameters as ``{alias: owner}``.

        Raises:
            FormatError: A member does not exist, is no linear projection, or does not fit the entry.
        """
        ...

    def finish(self, model: nn.Module, entry: Any) -> None:
        """Complete the modules after their weights are loaded.

        Raises:
            FormatError: The entry does not fit the modules.
        """
        ...

    def renamed(self, entry: Any) -> dict[str, str]:
        """Return the names on disk that differ from those in memory, as ``{disk: memory}``."""
        ...

    def dense(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of what it replaces by name, fp64; that of a projection as ``[d_in, d_out]``."""
        ...


_KINDS: dict[str, Kind] = {}


def register_kind(name: str, kind: Kind) -> None:
    """Register the loading of entries of a kind.

    Raises:
        ValueError: Another kind has this name.
    """
    known = _KINDS.get(name)
    if known is not None and type(known).__qualname__ != type(kind).__qualname__:
        raise ValueError(f"two kinds of modules are called {name!r}: rename one.")
    _KINDS[name] = kind


def kind_of(entry: Entry) -> Kind:
    """Return the kind that loads an entry.

    Raises:
        FormatError: The kind is not registered.
    """
    if entry.kind not in _KINDS:
        raise FormatError(
            f"entries of kind {entry.kind!r} cannot be loaded here: import the package that defines them."
        )
    return _KINDS[entry.kind]


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module at a path by another one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def projection_at(model: nn.Module, name: str) -> nn.Module:
    """Return the projection at a path.

    Raises:
        FormatError: There is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise FormatError(f"config.json names {name}, which this architecture does not have.") from None


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_in, d_out)`` of a projection that can be replaced.

    Raises:
        FormatError: The module is neither ``nn.Linear`` nor ``Conv1D``.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    raise FormatError(f"{type(module).__name__} is not a linear projection and cannot be replaced.")


class FactorsKind:
    """Loading of entries of the kind ``factors`` as :class:`FactorizedLinear` modules with one basis."""

    def install(self, model: nn.Module, entry: Factors) -> dict[str, str]:
        """Replace the members; see :class:`Kind`."""
        ties: dict[str, str] = {}
        owner: FactorizedLinear | None = None if entry.beside is None else _holder(model, entry)
        for name in entry.members:
            old = projection_at(model, name)
            d_in, d_out = linear_shape(old)
            has_bias, dtype = old.bias is not None, next(old.parameters()).dtype
            pivoted = entry.form == "pivoted"
            new = FactorizedLinear(
                d_in,
                entry.rank,
                d_out,
                has_bias,
                pivoted,
                entry.rows,
                entry.basis_grid,
                entry.grid("weight"),
                device="meta",
                dtype=dtype,
            )
            if owner is None:
                owner = new
            elif owner.in_features != d_in:
                raise FormatError(f"{name} reads {d_in} features but shares a basis of {owner.in_features}.")
            else:
                for part, tensor in owner.basis.named_parameters():
                    setattr(new.basis, part, tensor)
                    ties[f"{name}.basis.{part}"] = f"{entry.holder}.basis.{part}"
            new.sharers = len(entry.members)
            replace(model, name, new)
        return ties

    def finish(self, model: nn.Module, entry: Factors) -> None:
        """Set the order of the inputs, and let members that read one input share what they compute from it.

        Raises:
            FormatError: The pivots are missing or damaged.
        """
        modules = {name: m for name in entry.members if isinstance(m := model.get_submodule(name), FactorizedLinear)}
        owner = modules[entry.owner]
        for module in modules.values():
            # Older releases of transformers 5 keep renamed tensors in their dtype on disk.
            module.coeff.to(owner.weight_dtype)
            for layer in (module.basis, module.coeff):
                if isinstance(layer, RoundedLinear):
                    layer.check(entry.owner)
            module.group, module.stored_in = entry.owner, f"basis of {entry.holder}"
        if entry.form == "pivoted":
            order = input_order(entry, owner.in_features)
            if not torch.equal(order, torch.arange(len(order), dtype=order.dtype)):
                order = order.to(next(owner.basis.parameters()).device)
                for module in modules.values():
                    module.order, module.order_name = order, " ".join(entry.order) or f"order of {entry.owner}"
        for parent in {name.rpartition(".")[0] for name in modules}:
            share_readings(model.get_submodule(parent))

    def renamed(self, entry: Factors) -> dict[str, str]:
        """Return the names of weights and biases of the members in memory, by name on disk."""
        names = {f"{name}.bias": f"{name}.coeff.bias" for name in entry.members}
        for name in entry.members:
            names |= _in_memory(f"{name}.weight", f"{name}.coeff.weight", entry.grid("weight"))
        if entry.basis_grid is not None:
            stored = f"{entry.holder}.basis.weight"
            names |= _in_memory(stored, stored, entry.basis_grid)
        return names

    def dense(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return B C, shape ``[d_in, d_out]``, fp64."""
        assert isinstance(module, FactorizedLinear)
        return {"weight": full_basis(module).double() @ module.coeff.weight.detach().double().T}


def _in_memory(stored: str, name: str, grid: Grid | None) -> dict[str, str]:
    """Return the names of the tensors of a matrix in memory by their names on disk.

    Args:
        stored: Name of the whole matrix on disk.
        name: Its name in memory.
        grid: What it is rounded to.
    """
    if grid is None:
        return {stored: name}
    path = name.rpartition(".")[0]
    parts = (f"{path}.packed", f"{path}.scales", f"{path}.zero_points")
    return dict(zip(grid_tensors(stored, grid), parts, strict=False))


def _holder(model: nn.Module, entry: Factors) -> FactorizedLinear:
    """Return the projection under whose name the basis of an entry is stored beside others.

    Raises:
        FormatError: It is not installed yet, or its tensor has another size.
    """
    holder = projection_at(model, entry.holder)
    if not isinstance(holder, FactorizedLinear) or entry.rows is None or holder.basis.out_features != entry.rows[1]:
        raise FormatError(
            f"config.json stores the basis of {entry.owner} beside {entry.holder}, which holds no others."
        )
    return holder


class _RoundedKind:
    """What entries of one rounded matrix have in common."""

    def finish(self, model: nn.Module, entry: Bits | Embeddings) -> None:
        """Make sure that the scales are numbers."""
        module = model.get_submodule(entry.owner)
        assert isinstance(module, RoundedLinear)
        module.check(entry.owner)

    def renamed(self, entry: Bits | Embeddings) -> dict[str, str]:
        """Return the name of the packed matrix in memory, by that on disk."""
        return {f"{entry.owner}.weight": f"{entry.owner}.packed"}

    def dense(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the matrix, shape ``[d_in, d_out]``, fp64."""
        assert isinstance(module, RoundedLinear)
        return {"weight": module.matrix(torch.float64).detach().T}


class BitsKind(_RoundedKind):
    """Loading of entries of the kind ``bits`` as :class:`RoundedLinear` modules."""

    def install(self, model: nn.Module, entry: Bits) -> dict[str, str]:
        """Replace the member; see :class:`Kind`."""
        old = projection_at(model, entry.owner)
        d_in, d_out = linear_shape(old)
        entry.fit([(d_in, d_out)])
        has_bias, dtype = old.bias is not None, next(old.parameters()).dtype
        replace(model, entry.owner, RoundedLinear(d_in, d_out, entry.weight_grid, has_bias, "meta", dtype))
        return {}


class NarrowKind:
    """Loading of entries of the kind ``experts`` as :class:`NarrowExperts` modules."""

    def install(self, model: nn.Module, entry: Narrow) -> dict[str, str]:
        """Replace the experts; see :class:`Kind`."""
        old = projection_at(model, entry.owner)
        whole: Any = model.config
        config = whole.get_text_config()
        try:
            axes = width_axes(old, config)
        except FormatError as error:
            raise FormatError(f"{entry.owner} cannot be installed: {error}.") from None
        if {name for name, _ in old.named_parameters()} != set(entry.weights):
            raise FormatError(f"config.json names other weights of {entry.owner} than {type(old).__name__} has.")
        new = NarrowExperts(native_experts(old, config, entry.width), config.hidden_size, entry.width, axes)
        replace(model, entry.owner, new)
        return {}

    def finish(self, model: nn.Module, entry: Narrow) -> None:
        """Nothing is left to be done."""

    def renamed(self, entry: Narrow) -> dict[str, str]:
        """Return the names of the weights of the experts in memory; on disk they have those of the native module."""
        return {f"{entry.owner}.{name}": f"{entry.owner}.experts.{name}" for name in entry.weights}

    def dense(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of the experts at the width of the model."""
        assert isinstance(module, NarrowExperts)
        return module.dense()


class ExpertFactorsKind:
    """Loading of entries of the kind ``expert-factors`` as :class:`FactorizedExperts` modules."""

    def install(self, model: nn.Module, entry: ExpertFactors) -> dict[str, str]:
        """Replace the experts; see :class:`Kind`."""
        old = projection_at(model, entry.owner)
        reading = reading_weight(old)
        if reading is None or set(entry.sizes) != {reading, "down_proj"}:
            raise FormatError(f"{entry.owner} has no experts whose matrices are {' and '.join(entry.sizes)}.")
        for name, (d_in, d_out) in entry.sizes.items():
            shape = tuple(old.get_parameter(name).shape)
            if shape[0] != entry.count or sorted(shape[1:]) != sorted((d_in, d_out)):
                raise FormatError(
                    f"{entry.owner}.{name} has shape {list(shape)}, not that of the entry in config.json."
                )
        with torch.device("meta"):
            new = FactorizedExperts(old, entry.sizes, entry.ranks)
        replace(model, entry.owner, new.to("meta"))
        return {}

    def finish(self, model: nn.Module, entry: ExpertFactors) -> None:
        """Align the tensors in memory, so that products with some of their rows are the same everywhere, to the bit."""
        for parameter in model.get_submodule(entry.owner).parameters():
            if parameter.data_ptr() % _ALIGNMENT:
                parameter.data = parameter.data.clone()

    def renamed(self, entry: ExpertFactors) -> dict[str, str]:
        """Return no names: those on disk are those in memory."""
        return {}

    def dense(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of the native module."""
        assert isinstance(module, FactorizedExperts)
        return module.dense()


class EmbeddingsKind(_RoundedKind):
    """Loading of entries of the kind ``embeddings``: a table of embeddings, a tied head, or a head of its own."""

    def install(self, model: nn.Module, entry: Embeddings) -> dict[str, str]:
        """Replace the members, whose weights are tied no longer: their packed tables and scales are."""
        ties: dict[str, str] = {}
        owner: RoundedLinear | None = None
        for name in entry.members:
            new = _rounded_table(projection_at(model, name), entry.weight_grid)
            if owner is not None:
                if (new.in_features, new.out_features) != (owner.in_features, owner.out_features):
                    raise FormatError(f"{name} has another shape than {entry.owner}, to which config.json ties it.")
                new.packed, new.scales = owner.packed, owner.scales
                ties |= {f"{name}.{part}": f"{entry.owner}.{part}" for part in ("packed", "scales")}
            owner = owner or new
            replace(model, name, new)
            for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
                tied = getattr(model, attribute, None) or {}
                setattr(model, attribute, {alias: of for alias, of in tied.items() if alias != f"{name}.weight"})
        return ties


def _rounded_table(old: nn.Module, grid: Grid) -> RoundedLinear:
    """Return an uninitialised module in 8 bits for embeddings or an output head.

    Raises:
        FormatError: The module is neither.
    """
    if isinstance(old, nn.Linear):
        dtype = old.weight.dtype
        return RoundedLinear(old.in_features, old.out_features, grid, old.bias is not None, "meta", dtype)
    if isinstance(old, nn.Embedding) and old.max_norm is None:
        multiplier = float(getattr(old, "scalar_embed_scale", getattr(old, "embed_scale", 1.0)))
        return RoundedEmbedding(old.num_embeddings, old.embedding_dim, grid, multiplier, "meta", old.weight.dtype)
    raise FormatError(f"{type(old).__name__} is no table of embeddings that can be rounded.")


register_kind(Factors.kind, FactorsKind())
register_kind(Narrow.kind, NarrowKind())
register_kind(ExpertFactors.kind, ExpertFactorsKind())
register_kind(Embeddings.kind, EmbeddingsKind())
register_kind(Bits.kind, BitsKind())
