"""Access to the factors of a compressed model in memory, and its declaration as a compressed checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from basis_sharing.runtime import modeling_basis_sharing as runtime
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear, full_basis
from basis_sharing.runtime.format_basis_sharing import QUANT_METHOD, Entry
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear


def basis_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return the basis B of a factorized projection, all rows, shape ``[d_in, rank]``."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    return full_basis(module)


def stored_basis_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return the stored rows of B transposed of a factorized projection, shape ``[rank, d_in]`` or less if pivoted."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    return module.basis.weight.detach()[module.first : module.first + module.rank]


def coefficients_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return the coefficients C of a factorized projection, shape ``[rank, d_out]``."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    return module.coeff.weight.detach().T


def set_coefficients(model: nn.Module, name: str, C: torch.Tensor) -> None:
    """Overwrite the coefficients of one factorized projection with ``C`` of shape ``[rank, d_out]``."""
    module = model.get_submodule(name)
    assert isinstance(module, FactorizedLinear)
    with torch.no_grad():
        module.coeff.weight.copy_(C.T)


def set_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set parameters of a model by their names."""
    for name, parameter in parameters.items():
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, parameter)


def projection_parameters(model: nn.Module, names: Sequence[str]) -> int:
    """Return the parameters in the weights of projections, dense or compressed; shared ones count once, biases not."""
    weights: dict[nn.Parameter, int] = {}
    for name in names:
        module = model.get_submodule(name)
        found = module.named_parameters()
        weights |= {parameter: parameter.numel() for path, parameter in found if not path.endswith("bias")}
        for part in module.modules():
            weights |= part.counted() if isinstance(part, RoundedLinear) else {}
    return sum(weights.values())


def declare_compressed(model: Any, entries: Sequence[Entry], provenance: dict[str, Any]) -> None:
    """Declare a model with replaced projections as compressed, so that it is saved in the compressed format.

    Args:
        model: The model.
        entries: The entries of its projections.
        provenance: How the model was made; stored in ``config.json``, not used for loading.
    """
    loaded = [replace(entry, loss=None) for entry in entries]
    native = runtime.conversions_beside(loaded, native_conversions(model))
    config = runtime.BasisSharingConfig(entries=loaded, provenance=provenance)
    quantizer = runtime.BasisSharingQuantizer(config)
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.quantization_method = QUANT_METHOD
    model._weight_conversions = [*native, *quantizer.get_weight_conversions()]
    runtime.adopt(model)


def native_conversions(model: Any) -> list[Any]:
    """Return the weight conversions of the architecture, with which a model, dense or compressed, is saved.

    Language models are written with their full names, so prefix changes are left out; the towers of a multimodal model
    keep the names that their files had.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    own = {name for each in _own_conversions(model) for name in each.source_patterns}
    conversions = getattr(model, "_weight_conversions", None)
    loaded = conversions is not None
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
    keeps_prefixes = loaded and model.config.get_text_config() is not model.config
    return [
        each
        for each in conversions
        if not own.intersection(each.source_patterns) and (keeps_prefixes or type(each).__name__ != "PrefixChange")
    ]


def _own_conversions(model: Any) -> list[Any]:
    """Return the conversions of a compressed model that belong to its entries; none for dense ones."""
    config = getattr(model.config, "quantization_config", None)
    return runtime.weight_renamings(config.entries) if isinstance(config, runtime.BasisSharingConfig) else []
