# SPDX-License-Identifier: Apache-2.0
"""An architecture of mlx-lm with projections in factors.

mlx-lm loads this file, which ``config.json`` names, and with it the native class of the architecture. The modules that
``config.json`` lists are replaced before weights are loaded.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes


class FactorizedLinear(nn.Module):  # type: ignore[misc, unused-ignore]
    """A projection y = x B C + b; where it is pivoted, x B = x[order][:rank] + x[order][rank:] B~.

    Args:
        d_in: Number of input features.
        rank: Number of basis vectors.
        d_out: Number of output features.
        bias: Whether a bias is added.
        pivoted: Whether ``rank`` rows of B are the identity, and only the others are stored.
        ordered: Whether inputs are put in order first.
    """

    def __init__(self, d_in: int, rank: int, d_out: int, bias: bool, pivoted: bool, ordered: bool) -> None:
        super().__init__()
        self.basis = nn.Linear(d_in - rank if pivoted else d_in, rank, bias=False)
        self.coeff = nn.Linear(rank, d_out, bias=bias)
        self._rank = rank if pivoted else 0
        if ordered:
            self.order = mx.arange(d_in)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``x`` of shape ``[..., d_in]`` to ``[..., d_out]``."""
        if "order" in self:
            x = mx.take(x, self.order, axis=-1)
        leading, others = x[..., : self._rank], x[..., self._rank :]
        product: mx.array = self.coeff(leading + self.basis(others) if self._rank else self.basis(others))
        return product


class ModelArgs:
    """The configuration of the architecture, and the list of factors."""

    def __init__(self, config: dict[str, Any]) -> None:
        native = {name: value for name, value in config.items() if name != "model_file"}
        self.model_class, arguments = _get_classes(native)
        self.native, self.factors = arguments.from_dict(native), config["basis_sharing"]

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """Return the arguments in a ``config.json``."""
        return cls(config)


def Model(args: ModelArgs) -> nn.Module:  # noqa: N802 (mlx-lm looks for this name)
    """Return the native model with the factors in place; its weights are those of construction."""

    class Shared(args.model_class):  # type: ignore[name-defined, misc, unused-ignore]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            """Return the weights by the names of the modules; a shared basis is one array under several names."""
            if hasattr(super(), "sanitize"):
                weights = super().sanitize(weights)
            for name, about in args.factors.items():
                stored = f"{about['stored']}.basis."
                ends = [key.removeprefix(stored) for key in weights if key.startswith(stored)]
                weights |= {f"{name}.basis.{end}": weights[stored + end] for end in ends}
            return weights

    model = Shared(args.native)
    modules = dict(model.named_modules())
    for name, about in args.factors.items():
        parent, _, child = name.rpartition(".")
        if parent not in modules:
            raise ValueError(f"its class of this architecture has no {parent}")
        new = FactorizedLinear(*(about[part] for part in ("d_in", "rank", "d_out", "bias", "pivoted", "ordered")))
        setattr(modules[parent], child, new)
    return model
