"""Modules that multiply by one dense weight matrix, and how they store it."""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_matrix_module(module: nn.Module) -> bool:
    """Return whether a module applies one matrix: ``Linear``, ``Conv1D`` or a quantized subclass of them."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_dense(module: nn.Module) -> bool:
    """Return whether a matrix module stores its weight as floating-point numbers in the full shape.

    Quantized linear modules of other libraries inherit from ``nn.Linear`` but store packed integers.
    """
    weight = module.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return False
    return not isinstance(module, nn.Linear) or weight.shape == (module.out_features, module.in_features)


def features(module: nn.Module) -> tuple[int, int, bool]:
    """Return ``(d_in, d_out, transposed)`` of a dense matrix module.

    ``transposed`` is True for ``Conv1D``, which stores its weight as ``[d_in, d_out]``.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, Conv1D):
        return weight.shape[0], weight.shape[1], True
    return weight.shape[1], weight.shape[0], False
