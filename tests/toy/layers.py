"""The modules of the kind ``toy``."""

import torch
from torch import Tensor, nn

from basis_sharing.runtime.factorized_basis_sharing import decode_pivots
from basis_sharing.runtime.layers_basis_sharing import linear_shape, projection_at, replace
from toy.entry import Toy


class ToyLinear(nn.Module):
    """A projection that reads some of its inputs, in eight bits."""

    inputs: Tensor | None

    def __init__(self, d_in: int, count: int, d_out: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        codes = torch.empty(d_out, count, dtype=torch.int8, device="meta")
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(torch.empty(d_out, dtype=torch.float32, device="meta"))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=dtype, device="meta")) if bias else None
        self.register_buffer("inputs", torch.empty(count, dtype=torch.int32, device="meta"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.inputs is not None
        weight = self.weight.to(x.dtype) * self.scales.to(x.dtype)[:, None]
        return nn.functional.linear(x.index_select(-1, self.inputs), weight, self.bias)


class ToyKind:
    """Entries of the kind ``toy`` as :class:`ToyLinear`."""

    def install(self, model: nn.Module, entry: Toy) -> dict[str, str]:
        old = projection_at(model, entry.owner)
        d_in, d_out = linear_shape(old)
        dtype = next(old.parameters()).dtype
        replace(model, entry.owner, ToyLinear(d_in, entry.count, d_out, old.bias is not None, dtype))
        return {}

    def finish(self, model: nn.Module, entry: Toy) -> None:
        module = model.get_submodule(entry.owner)
        assert isinstance(module, ToyLinear)
        assert entry.inputs is not None
        chosen, _ = decode_pivots(entry.inputs, module.in_features, entry.count)
        module.inputs = chosen.to(module.weight.device)

    def renamed(self, entry: Toy) -> dict[str, str]:
        return {}

    def dense(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, ToyLinear)
        assert module.inputs is not None
        full = torch.zeros(module.in_features, module.out_features, dtype=torch.float64)
        full[module.inputs.long()] = (module.weight.double() * module.scales.detach().double()[:, None]).T
        return {"weight": full}
