"""A compressed model in memory, as its checkpoint will load: reading its factors, and declaring what it is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from basis_sharing.runtime import modeling_basis_sharing as runtime
from basis_sharing.runtime.format_basis_sharing import QUANT_METHOD, Entry
from basis_sharing.runtime.layers_basis_sharing import FactorizedLinear, full_basis


def basis_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return B of a factorized projection, all rows, shape ``[d_in, rank]``."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    return full_basis(module)


def set_coefficients(model: nn.Module, name: str, C: torch.Tensor) -> None:
    """Overwrite the coefficients of one factorized projection with ``C`` of shape ``[rank, d_out]``."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    with torch.no_grad():
        module.coeff.weight.copy_(C.T)


def projection_parameters(model: nn.Module, names: Sequence[str]) -> int:
    """Count the numbers in the weights of projections, dense or compressed; shared ones count once, biases do not."""
    weights = {
        id(parameter): parameter.numel()
        for name in names
        for path, parameter in model.get_submodule(name).named_parameters()
        if path.rpartition(".")[2] != "bias"
    }
    return sum(weights.values())


def declare_compressed(model: Any, entries: Sequence[Entry], provenance: dict[str, Any]) -> None:
    """Make a model whose projections were replaced save itself as a compressed checkpoint.

    Args:
        model: The model.
        entries: What its projections were turned into.
        provenance: How that was done; stored in ``config.json``, not used for loading.
    """
    loaded = [replace(entry, loss=None) for entry in entries]
    config = runtime.BasisSharingConfig(entries=loaded, provenance=provenance)
    quantizer = runtime.BasisSharingQuantizer(config)
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.quantization_method = QUANT_METHOD
    model._weight_conversions = [*_native_conversions(model), *quantizer.get_weight_conversions()]
    runtime.adopt(model)


def _native_conversions(model: Any) -> list[Any]:
    """Return the conversions the architecture itself needs; prefix changes are left out, we write full names."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    found = getattr(model, "_weight_conversions", None)
    if found is None:
        found = get_model_conversion_mapping(model, add_legacy=False)
    return [conversion for conversion in found if type(conversion).__name__ != "PrefixChange"]
