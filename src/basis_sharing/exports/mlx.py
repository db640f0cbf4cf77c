"""Export for mlx-lm: a folder with the factors, and a file that puts them into mlx-lm's own class of the architecture.

Weights in 8 or 4 bits are those of mlx-lm: rounded to the nearest, in groups of 64 inputs.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.errors import ModelError
from basis_sharing.exports.base import Stored, register
from basis_sharing.exports.runtimes.traced import RuntimeExport, native_configuration

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MODEL_FILE = "model_basis_sharing_mlx.py"
_GROUP = 64
_BITS = {"int8": 8, "int4": 4}
_NAMES = {"n_ctx": "n_positions"}
"""Names of settings in mlx-lm that transformers no longer writes, and those that it does."""


class Mlx(RuntimeExport):
    """Export for mlx-lm."""

    name = "mlx"
    summary = "a folder with its factors for mlx-lm, on Apple silicon and on Linux"
    stored: Mapping[str, Stored] = {
        "float32": Stored(4, 4),
        "float16": Stored(2, 2),
        "int8": Stored(1 + 4 / _GROUP, 1 + 4 / _GROUP),
        "int4": Stored(0.5 + 4 / _GROUP, 0.5 + 4 / _GROUP),
    }
    packages: tuple[str, ...] = ("mlx",)

    def convert(self, model: "PreTrainedModel", staging: Path, weights: str) -> None:
        """Write ``model.safetensors``, in few bits by mlx-lm itself, and the file of the architecture."""
        import torch
        from safetensors.torch import save_file

        tensors, factors = _stored(model)
        dtype = torch.float32 if weights == "float32" else torch.float16
        held = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in tensors.items()
        }
        save_file(held, staging / "model.safetensors", {"format": "mlx"})
        config = {**native_configuration(model).to_dict(), "basis_sharing": factors}
        config |= {other: config[name] for other, name in _NAMES.items() if name in config}
        if factors:
            shutil.copy(Path(__file__).parent / "travelling" / MODEL_FILE, staging / MODEL_FILE)
            config["model_file"] = MODEL_FILE
        _write(staging, config)
        if weights in _BITS:
            _round(staging, config, _BITS[weights])

    def configure(self, model: "PreTrainedModel", staging: Path) -> None:
        """Nothing is left to be written: the configuration belongs to the weights."""


register(Mlx())


def _stored(model: "PreTrainedModel") -> tuple[dict[str, "Tensor"], dict[str, dict[str, Any]]]:
    """Return the tensors of a model by their names on disk, and its projections in factors by name.

    Raises:
        ModelError: It has experts in another form, which mlx-lm has no place for.
    """
    from basis_sharing.runtime.experts_basis_sharing import FactorizedExperts, NarrowExperts
    from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear

    modules = dict(model.named_modules())
    if any(isinstance(module, FactorizedExperts | NarrowExperts) for module in modules.values()):
        raise ModelError(
            "narrow experts and experts with factors have no place in mlx-lm: compress with --treatments factors, or "
            "use --to dense."
        )
    factors = {name: module for name, module in modules.items() if isinstance(module, FactorizedLinear)}
    inside = tuple(f"{name}." for name in factors)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(inside) and all(tensor.data_ptr() != other.data_ptr() for other in tensors.values()):
            tensors[name] = tensor
    owners: dict[str, str] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, module in factors.items():
        owner = owners.setdefault(module.group, name)
        if owner == name:
            tensors[f"{name}.basis.weight"] = module.basis.weight[module.first : module.first + module.rank].detach()
        tensors[f"{name}.coeff.weight"] = module.coeff.weight.detach()
        if module.coeff.bias is not None:
            tensors[f"{name}.coeff.bias"] = module.coeff.bias.detach()
        if module.order is not None:
            tensors[f"{name}.order"] = module.order.clone()
        described[name] = {
            "d_in": module.in_features,
            "rank": module.rank,
            "d_out": module.out_features,
            "bias": module.coeff.bias is not None,
            "pivoted": module.pivoted,
            "ordered": module.order is not None,
            "stored": owner,
        }
    return {name: tensor.detach() for name, tensor in tensors.items()}, described


def _write(staging: Path, config: dict[str, Any]) -> None:
    (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _round(staging: Path, config: dict[str, Any], bits: int) -> None:
    """Round the weights in a folder; a shared basis stays one array."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    model, _ = load_model(staging, trust_remote_code=True)
    model, rounded = quantize_model(model, config, _GROUP, bits)
    shared = tuple(f"{name}.basis." for name, about in config["basis_sharing"].items() if about["stored"] != name)
    weights = {name: array for name, array in tree_flatten(model.parameters()) if not name.startswith(shared)}
    mx.eval(weights)
    (staging / "model.safetensors").unlink()
    mx.save_safetensors(str(staging / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(staging, rounded)
