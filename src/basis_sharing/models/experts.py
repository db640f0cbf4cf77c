"""The experts of mixtures: which modules of the decoder blocks hold them, and whether they can be made narrower."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from basis_sharing.models.family import EXPERTS, Experts
from basis_sharing.runtime.experts_basis_sharing import reading_weight, width_axes
from basis_sharing.runtime.format_basis_sharing import FormatError

_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "top_k")
"""Names under which configurations have the number of experts per token."""


def find_experts(model: PreTrainedModel, blocks: Sequence[str]) -> tuple[list[Experts], dict[str, str]]:
    """Return the experts of all blocks that can be made narrower, and why others cannot, by path inside a block."""
    config = model.config.get_text_config()
    found: list[Experts] = []
    reasons: dict[str, str] = {}
    for index, block in enumerate(blocks):
        for path, module in _stacks(model.get_submodule(block)):
            try:
                axes = width_axes(module, config)
            except FormatError as error:
                reasons[path] = f"{error}, so they are left dense"
                continue
            found.append(_described(f"{block}.{path}", index, module, axes, config))
    return found, reasons


def _described(name: str, block: int, module: Any, axes: Mapping[str, int], config: object) -> Experts:
    """Return the description of a module of experts.

    Args:
        name: Its path in the model.
        block: Index of its block.
        module: The module.
        axes: The axes of its parameters that have the width of the model.
        config: Configuration of the language model.
    """
    shapes = {weight: getattr(module, weight).shape for weight in axes}
    matrices = [(shape, axes[weight]) for weight, shape in shapes.items() if not weight.endswith("bias")]
    shape, axis = matrices[0]
    count = shape[0]
    numbers = sum(shape.numel() // shape[axis] for shape, axis in matrices)
    active = next((given for name in _ACTIVE if isinstance(given := getattr(config, name, None), int)), count)
    return Experts(
        name=name,
        block=block,
        role=EXPERTS,
        input=EXPERTS,
        d_in=shape[axis],
        d_out=numbers,
        count=count,
        active=min(active, count),
        weights=tuple(name for name, _ in module.named_parameters()),
        reading=reading_weight(module),
        neurons=module.down_proj.numel() // count // shape[axis],
    )


def _stacks(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a block that hold the weights of all experts in parameters with three axes, by path."""
    for path, module in block.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if any(parameter.dim() == 3 for parameter in parameters.values()) and "expert" in path.lower():
            yield path, module
