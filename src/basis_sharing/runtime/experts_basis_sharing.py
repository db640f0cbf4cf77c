# SPDX-License-Identifier: Apache-2.0
"""The experts of a mixture: at a smaller width between two bases, or each with factors of its own.

This file is copied into every checkpoint.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .expert_entries_basis_sharing import expert_tensors
from .format_basis_sharing import FormatError

OUTPUT, INPUT = ("down_proj",), ("gate_up_proj", "gate_proj", "up_proj")
"""Names of the weights of experts whose outputs, and whose inputs, have the width of the model."""
_WEIGHTS = tuple(f"{name}{part}" for name in (*INPUT, *OUTPUT) for part in ("", "_bias"))


class NarrowExperts(nn.Module):
    """The experts y = (sum_e w_e expert_e(x A)) Z: native experts of a narrower model between two shared bases.

    Args:
        experts: The native module at the smaller width; the bases are made where it is, in its dtype.
        d_in: Width of the model.
        width: Width of the experts.
        axes: The axes of its parameters that have this width.

    Attributes:
        input_basis: ``nn.Linear`` whose weight is A transposed, shape ``[width, d_in]``.
        experts: The native module.
        output_basis: ``nn.Linear`` whose weight is Z transposed, shape ``[d_in, width]``.
    """

    def __init__(self, experts: nn.Module, d_in: int, width: int, axes: Mapping[str, int]) -> None:
        super().__init__()
        like = next(experts.parameters())
        self.input_basis = nn.Linear(d_in, width, bias=False, device=like.device, dtype=like.dtype)
        self.experts, self.axes = experts, dict(axes)
        self.output_basis = nn.Linear(width, d_in, bias=False, device=like.device, dtype=like.dtype)

    def forward(self, hidden_states: torch.Tensor, *routing: Any, **named: Any) -> torch.Tensor:
        """Map ``hidden_states`` of shape ``[..., d_in]`` to the same shape; the routing is passed to the experts."""
        narrow = self.experts(self.input_basis(hidden_states), *routing, **named)
        written: torch.Tensor = self.output_basis(narrow)
        return written

    def dense(self) -> dict[str, torch.Tensor]:
        """Return the weights of the experts at the width of the model, fp64, by name."""
        bases = {"input": self.input_basis.weight, "output": self.output_basis.weight.T}
        return {
            name: at_width(parameter.detach().double(), self.axes.get(name), bases[side_of(name)].detach().double())
            for name, parameter in self.experts.named_parameters()
        }


def at_width(parameter: torch.Tensor, axis: int | None, M: torch.Tensor) -> torch.Tensor:
    """Return a parameter of experts with its axis multiplied by a matrix.

    Args:
        parameter: The parameter.
        axis: The axis of ``d`` numbers; None: it does not depend on the width, and stays.
        M: Shape ``[d, other width]``.
    """
    return parameter if axis is None else (parameter.movedim(axis, -1) @ M).movedim(-1, axis).contiguous()


def native_experts(experts: nn.Module, config: Any, width: int) -> nn.Module:
    """Return uninitialised experts of the same class as others, for a model of another width, on the meta device.

    Args:
        experts: The module.
        config: Configuration of the model, used where the module has none.
        width: Width of the model that they are for.

    Raises:
        FormatError: The class cannot be built from a configuration.
    """
    config = getattr(experts, "config", config)
    narrow = copy.deepcopy(config)
    narrow.hidden_size = width
    dtype = next(experts.parameters()).dtype
    try:
        with torch.device("meta"):
            native = type(experts)(narrow)
    except Exception as error:  # classes of other kinds raise errors of any type
        raise FormatError(f"{type(experts).__name__} cannot be built at another width: {error}") from None
    if hasattr(native, "config"):
        native.config = config  # whose choice of kernels may change later
    return native.to(dtype).train(experts.training)


def width_axes(experts: nn.Module, config: Any) -> dict[str, int]:
    """Return the parameters of experts that depend on the width of the model, each with its axis of that width.

    Args:
        experts: The module.
        config: Configuration of the model.

    Raises:
        FormatError: They are no experts that can be made narrower; the message is the reason, part of a sentence.
    """
    width = config.hidden_size
    if getattr(config, "zero_expert_num", 0):
        raise FormatError("experts beside which others pass their input on cannot be made narrower")
    shapes = {name: parameter.shape for name, parameter in experts.named_parameters()}
    unknown = next((name for name in shapes if name not in _WEIGHTS), None)
    if unknown is not None:
        raise FormatError(f"experts with a {unknown} cannot be made narrower")
    try:
        own, double = (dict(native_experts(experts, config, size).named_parameters()) for size in (width, 2 * width))
    except FormatError:
        raise FormatError(f"{type(experts).__name__} cannot be made narrower") from None
    axes = {}
    for name, shape in shapes.items():
        if name not in own or own[name].shape != shape:
            raise FormatError(f"{type(experts).__name__} has weights of other shapes than its configuration says")
        wide = [axis for axis, size in enumerate(double[name].shape) if size != shape[axis]]
        if len(wide) > 1 or 0 in wide:
            raise FormatError(f"{type(experts).__name__} has a {name} in which more depends on the width than inputs")
        if wide:
            axes[name] = wide[0]
    sides = {side_of(name) for name in axes}
    if sides != {"input", "output"}:
        raise FormatError(f"{type(experts).__name__} does not read and write what the model is as wide as")
    return axes


def side_of(name: str) -> str:
    """Return whether a weight of experts reads the ``input`` of the module, or writes its ``output``."""
    return "output" if name.startswith(OUTPUT) else "input"


def reading_weight(experts: nn.Module) -> str | None:
    """Return the name of the weight of experts that reads their input; None: how one of them computes is not known."""
    if not hasattr(experts, "has_gate") or getattr(experts, "has_post_expert_norm", False):
        return None
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    return name if hasattr(experts, name) and hasattr(experts, "down_proj") else None


def chosen_in(given: Sequence[Any]) -> torch.Tensor | None:
    """Return the chosen experts of every token, among the arguments of a module; None: they are not."""
    return next((one for one in given if isinstance(one, torch.Tensor) and not one.is_floating_point()), None)


def routing_in(given: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the chosen experts of every token and their weights, among the arguments of a module; None: neither is."""
    index = chosen_in(given)
    if index is None:
        return None
    tensors = (one for one in given if isinstance(one, torch.Tensor))
    weights = next((one for one in tensors if one.is_floating_point() and one.shape == index.shape), None)
    return None if weights is None else (index, weights)


def visited(index: torch.Tensor, count: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield every expert that tokens are sent to, with these tokens and the place of the expert in their choice.

    Args:
        index: The chosen experts of every token, shape ``[tokens, active]``.
        count: Number of experts; larger numbers are those that expert parallelism marks as not here.
    """
    for number in index.unique().tolist():
        if number < count:
            yield number, *(index == number).nonzero(as_tuple=True)


def expert_matrix(experts: Any, name: str, number: int) -> torch.Tensor:
    """Return a matrix of one expert of a native module, shape ``[inputs, outputs]``."""
    weight: torch.Tensor = getattr(experts, name)[number]
    return weight if experts.is_transposed else weight.T


def neurons_of(experts: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return what the neurons of an expert compute from the outputs of the weight that reads."""
    found: torch.Tensor = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
    return found


class FactorizedExperts(nn.Module):
    """Experts whose matrices are factors of their own, or stay dense, each with a rank of its own.

    The factors of all experts are in one tensor, one below the other.

    Args:
        native: The native module; its weights are dropped.
        sizes: ``(inputs, outputs)`` of every matrix of an expert, by name.
        ranks: The rank of every expert for each of them; 0: it stays dense.
    """

    def __init__(
        self, native: nn.Module, sizes: Mapping[str, tuple[int, int]], ranks: Mapping[str, Sequence[int]]
    ) -> None:
        super().__init__()
        like = next(native.parameters())
        self.sizes, self.ranks = dict(sizes), {name: tuple(own) for name, own in ranks.items()}
        for name, shape in expert_tensors(self.sizes, self.ranks).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype)))
        for name, parameter in native.named_parameters():
            if name not in sizes:
                self.register_parameter(name, nn.Parameter(torch.empty_like(parameter)))
        self._places = {name: _places(own) for name, own in self.ranks.items()}
        bare = copy.copy(native)
        bare._parameters = {}
        # No child, whose weights transformers would look for.
        self._native = (bare,)

    def forward(self, hidden_states: torch.Tensor, *routing: Any, **named: Any) -> torch.Tensor:
        """Map ``hidden_states`` of shape ``[tokens, width]`` to the weighted sums of what their experts write."""
        found = routing_in((*routing, *named.values()))
        assert found is not None
        (index, weights), written = found, torch.zeros_like(hidden_states)
        (reading,) = set(self.sizes) - set(OUTPUT)
        for number, token, place in visited(index, len(self.ranks[reading])):
            neurons = neurons_of(self._native[0], self._product(reading, number, hidden_states[token]))
            own = self._product("down_proj", number, neurons) * weights[token, place, None]
            written.index_add_(0, token, own.to(written.dtype))
        return written

    def _product(self, name: str, number: int, x: torch.Tensor) -> torch.Tensor:
        """Return x times a matrix of one expert, with its bias."""
        place = self._places[name][number]
        if isinstance(place, int):
            found = x @ self.get_parameter(name)[place].T
        else:
            found = x @ self.get_parameter(f"{name}_basis")[place].T @ self.get_parameter(f"{name}_coeff")[place]
        bias = getattr(self, f"{name}_bias", None)
        return found if bias is None else found + bias[number]

    def dense(self) -> dict[str, torch.Tensor]:
        """Return the weights of the native module, fp64, by name."""
        own = {name: parameter.detach().double() for name, parameter in self.named_parameters()}
        found = {name: tensor for name, tensor in own.items() if name.endswith("_bias")}
        for name, places in self._places.items():
            stacked = torch.stack(
                [
                    own[name][at] if isinstance(at, int) else own[f"{name}_coeff"][at].T @ own[f"{name}_basis"][at]
                    for at in places
                ]
            )
            found[name] = stacked.transpose(1, 2).contiguous() if self._native[0].is_transposed else stacked
        return found


def _places(ranks: Sequence[int]) -> list[int | slice]:
    """Return where the matrix of every expert is: its index among the dense ones, or the rows of its factors."""
    found: list[int | slice] = []
    whole = rows = 0
    for rank in ranks:
        found.append(slice(rows, rows + rank) if rank else whole)
        whole, rows = whole + (rank == 0), rows + rank
    return found
