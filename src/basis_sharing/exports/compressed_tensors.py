"""Export of a model whose projections are rounded, and not factorized, as an ordinary compressed-tensors checkpoint.

transformers (with the package compressed-tensors) and vLLM load it without this package, and multiply with their own
kernels. The layout is ``pack-quantized``: of 4 and 8 bits ours is the same. Engines fuse projections that read one
input, which have to be on grids of one kind then: they are written in the most bits and the smallest groups among them,
which changes no weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.errors import ModelError
from basis_sharing.exports.base import register
from basis_sharing.run.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from torch import Tensor

    from basis_sharing.runtime.entries_basis_sharing import Bits
    from basis_sharing.runtime.format_basis_sharing import Entry, Grid

_WIDTHS = (4, 8)
_SHARD = "5GB"


class CompressedTensors:
    """Export to a compressed-tensors checkpoint."""

    name = "compressed-tensors"
    summary = "symmetric weights in 4 or 8 bits, without factors, which load without this package"
    weights: tuple[str, ...] = ()
    takes_dense = False

    def write(self, folder: Path, staging: Path, weights: str | None, progress: ProgressCallback) -> None:
        """Write the packed weights under the names of compressed-tensors, with its configuration.

        Raises:
            ModelError: The model cannot be loaded, or has projections that this form cannot hold.
            OutputError: The disk has not enough space.
        """
        from huggingface_hub import save_torch_state_dict

        from basis_sharing.checkpoint.writer import check_space
        from basis_sharing.exports.dense import native_config
        from basis_sharing.models.sizes import memory_bytes
        from basis_sharing.models.source import load_model, load_tokenizer, resolve
        from basis_sharing.run.files import output_errors

        source = resolve(folder)
        model = load_model(source)
        entries = _rounded(model, folder)
        check_space(staging, memory_bytes(model))
        config = native_config(model.config)
        grids = _written_grids(model, entries)
        config.quantization_config = configuration(grids, model)
        with output_errors(staging):
            config.save_pretrained(staging)
            save_torch_state_dict(_tensors(model, grids, progress), staging, max_shard_size=_SHARD)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(staging)
            load_tokenizer(source).save_pretrained(staging)


register(CompressedTensors())


def _rounded(model: Any, folder: Path) -> list["Bits"]:
    """Return the entries of a model.

    Raises:
        ModelError: One of them, or the model, has no such form.
    """
    from transformers.pytorch_utils import Conv1D

    from basis_sharing.exports.dense import skeleton_of
    from basis_sharing.models.multimodal import is_multimodal
    from basis_sharing.runtime.entries_basis_sharing import Bits, Embeddings

    entries: Iterable[Entry] = model.config.quantization_config.entries
    found = []
    if is_multimodal(model):
        raise ModelError(f"{folder} is multimodal, which this export does not support: use --to dense.")
    skeleton = skeleton_of(model)
    for entry in entries:
        name = f"{entry.owner} in {folder}"
        if isinstance(entry, Embeddings):
            raise ModelError(
                f"{name} is a table in 8 bits, which compressed-tensors has no form for: compress without "
                "--embedding-bits, or use --to dense."
            )
        if not isinstance(entry, Bits):
            raise ModelError(
                f"{name} has factors, which compressed-tensors has no form for: compress with "
                "--treatments bits, or use --to dense."
            )
        if entry.weight_grid.bits not in _WIDTHS:
            raise ModelError(
                f"{name} has {entry.weight_grid.bits} bits, which compressed-tensors packs otherwise: "
                "compress with --widths 8,4, or use --to dense."
            )
        if not entry.weight_grid.symmetric:
            # compressed-tensors 0.20 prepares unpacked zero points for them, and stops at their shape.
            raise ModelError(
                f"{name} has zero points, which transformers cannot load in this form: compress with "
                "--no-zero-points, or use --to dense."
            )
        if isinstance(skeleton.get_submodule(entry.owner), Conv1D):
            raise ModelError(f"{name} is a Conv1D, which compressed-tensors does not replace: use --to dense.")
        found.append(entry)
    return found


def _written_grids(model: Any, entries: Sequence["Bits"]) -> dict[str, "Grid"]:
    """Return the grid in which every weight is written, by the name of its projection."""
    from basis_sharing.exports.dense import skeleton_of
    from basis_sharing.models.decoder import describe
    from basis_sharing.runtime.format_basis_sharing import Grid

    inputs = {p.name: (p.block, p.input) for p in describe(skeleton_of(model)).projections}
    readers: dict[tuple[int, str], list[Grid]] = {}
    for entry in entries:
        readers.setdefault(inputs[entry.owner], []).append(entry.weight_grid)
    common = {
        read: Grid(max(grid.bits for grid in grids), gcd(*(grid.group for grid in grids)), symmetric=True)
        for read, grids in readers.items()
    }
    return {entry.owner: common[inputs[entry.owner]] for entry in entries}


def configuration(grids: Mapping[str, "Grid"], model: Any) -> dict[str, Any]:
    """Return the ``quantization_config`` of compressed-tensors: one group of modules for every kind of grid.

    Args:
        grids: The grid of every weight that is rounded, by the name of its projection.
        model: The model with these projections.
    """
    alike: dict[tuple[int, int | None], list[str]] = {}
    for name, grid in grids.items():
        whole = grid.group >= model.get_submodule(name).in_features
        alike.setdefault((grid.bits, None if whole else grid.group), []).append(name)
    groups = {
        f"group_{number}": {
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if size is None else "group",
                "group_size": size,
                "dynamic": False,
            },
        }
        for number, ((bits, size), names) in enumerate(alike.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }


def _tensors(model: Any, grids: Mapping[str, "Grid"], progress: ProgressCallback) -> dict[str, "Tensor"]:
    """Return the tensors of the checkpoint by name; tied ones once."""
    import torch

    tied = set(getattr(model, "all_tied_weights_keys", {}))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    for done, (name, grid) in enumerate(grids.items(), start=1):
        module = model.get_submodule(name)
        state |= _rewritten(name, module, grid)
        state[f"{name}.weight_shape"] = torch.tensor([module.out_features, module.in_features])
        for part in ("packed", "scales"):
            del state[f"{name}.{part}"]
        progress(Progress("packing weights", done, len(grids), "projections"))
    return state


def _rewritten(name: str, module: Any, grid: "Grid") -> dict[str, "Tensor"]:
    """Return the packed codes and the scales of a weight on a grid that holds it exactly."""
    from basis_sharing.runtime.rounded_basis_sharing import pack

    codes = module.codes() + 2 ** (grid.bits - 1) - 2 ** (module.grid.bits - 1)
    scales = module.scales.detach()
    repeats = grid.groups(module.in_features) // scales.shape[1]
    return {
        f"{name}.weight_packed": pack(codes, grid),
        f"{name}.weight_scale": scales.repeat_interleave(repeats, 1).contiguous(),
    }
