"""Put computed factors into a model in memory, so that it is what its checkpoint will load as."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basis_sharing.errors import PlanError
from basis_sharing.linalg.pivoting import assemble
from basis_sharing.runtime import modeling_basis_sharing as runtime


@dataclass(frozen=True)
class GroupFactors:
    """The factors of one group.

    Attributes:
        members: Module paths of the projections, the owner of the basis first.
        basis: The stored rows of B: shape ``[d_in, rank]``, or ``[d_in - rank, rank]`` if it is pivoted.
        coefficients: C_i of each member, shape ``[rank, d_out_i]``.
        pivots: Sorted indices of the rows of B that are the identity, shape ``[rank]``; None: not pivoted.
    """

    members: tuple[str, ...]
    basis: torch.Tensor
    coefficients: tuple[torch.Tensor, ...]
    pivots: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of basis vectors."""
        return self.basis.shape[1]

    def full_basis(self) -> torch.Tensor:
        """Return B, all rows, shape ``[d_in, rank]``."""
        if self.pivots is None:
            return self.basis
        rest = torch.ones(len(self.basis) + self.rank, dtype=torch.bool).index_fill_(0, self.pivots, False)
        return assemble(self.pivots, rest.nonzero()[:, 0], self.basis)

    def entry(self) -> dict[str, Any]:
        """Return the entry of the group in ``config.json``."""
        entry: dict[str, Any] = {"rank": self.rank, "members": list(self.members)}
        if self.pivots is not None:
            d_in = len(self.basis) + self.rank
            entry |= {"form": "pivoted", "pivots": runtime.encode_pivots(self.pivots, d_in)}
        return entry


def install_factors(model: nn.Module, factors: GroupFactors) -> dict[str, Any]:
    """Replace the members of a group by factorized projections that hold ``factors`` in the dtype of the originals.

    Biases are kept. The basis becomes one parameter shared by all members.

    Returns:
        The entry of the group in ``config.json``, for :func:`declare_compressed`.
    """
    originals = [model.get_submodule(name) for name in factors.members]
    entry = factors.entry()
    runtime.install(model, [entry])
    basis: nn.Parameter | None = None
    for name, original, C in zip(factors.members, originals, factors.coefficients, strict=True):
        weight, bias = original.weight, original.bias
        assert isinstance(weight, nn.Parameter)
        module = model.get_submodule(name)
        assert isinstance(module, runtime.FactorizedLinear)
        if basis is None:
            basis = _like(weight, factors.basis.T)
        module.basis.weight = basis
        module.coeff.weight = _like(weight, C.T)
        if isinstance(bias, nn.Parameter):
            module.coeff.bias = bias
        module.train(original.training)
    runtime.set_pivots(model, [entry])
    return entry


def basis_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return B of a factorized projection, all rows, shape ``[d_in, rank]``."""
    module = model.get_submodule(name)
    assert isinstance(module, runtime.FactorizedLinear)
    stored = module.basis.weight.detach().T
    if module.pivots is None or module.rest is None:
        return stored
    return assemble(module.pivots, module.rest, stored)


def product_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return B C of a factorized projection, shape ``[d_in, d_out]``, fp64."""
    module = model.get_submodule(name)
    assert isinstance(module, runtime.FactorizedLinear)
    return basis_of(model, name).double() @ module.coeff.weight.detach().double().T


def set_coefficients(model: nn.Module, name: str, C: torch.Tensor) -> None:
    """Overwrite the coefficients of one factorized projection with ``C`` of shape ``[rank, d_out]``."""
    module = model.get_submodule(name)
    assert isinstance(module, runtime.FactorizedLinear)
    with torch.no_grad():
        module.coeff.weight.copy_(C.T)


def projection_parameters(model: nn.Module, names: Sequence[str]) -> int:
    """Count the numbers in the weights of projections, dense or factorized; a shared basis counts once."""
    weights: dict[int, int] = {}
    for name in names:
        module = model.get_submodule(name)
        parts = [module.basis, module.coeff] if isinstance(module, runtime.FactorizedLinear) else [module]
        for part in parts:
            assert isinstance(part.weight, torch.Tensor)
            weights[id(part.weight)] = part.weight.numel()
    return sum(weights.values())


def declare_compressed(model: Any, groups: Sequence[dict[str, Any]], provenance: dict[str, Any]) -> None:
    """Make a model with installed factors save itself as a compressed checkpoint.

    Args:
        model: The model.
        groups: What :func:`install_factors` returned for every group.
        provenance: How the factors were made; stored in ``config.json``, not used for loading.

    Raises:
        PlanError: A group has as many basis vectors as inputs: it saves nothing, and a loader that does not know
            the format could mistake its coefficients for the weight.
    """
    for group in groups:
        owner, rank = group["members"][0], group["rank"]
        if rank >= basis_of(model, owner).shape[0]:
            raise PlanError(f"{owner} has full rank {rank}: leave it dense in the plan.")
    config = runtime.BasisSharingConfig(groups=list(groups), provenance=provenance)
    quantizer = runtime.BasisSharingQuantizer(config)
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.quantization_method = runtime.QUANT_METHOD
    model._weight_conversions = [*_native_conversions(model), *quantizer.get_weight_conversions()]
    runtime.adopt(model)


def _native_conversions(model: Any) -> list[Any]:
    """Return the conversions the architecture itself needs; prefix changes are left out, we write full names."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    found = getattr(model, "_weight_conversions", None)
    if found is None:
        found = get_model_conversion_mapping(model, add_legacy=False)
    return [conversion for conversion in found if type(conversion).__name__ != "PrefixChange"]


def _like(parameter: nn.Parameter, values: torch.Tensor) -> nn.Parameter:
    data = values.to(device=parameter.device, dtype=parameter.dtype).contiguous()
    return nn.Parameter(data, requires_grad=parameter.requires_grad)
