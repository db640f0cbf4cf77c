# SPDX-License-Identifier: Apache-2.0
"""The module of a projection in factors, and the order of its inputs.

This file is copied into every checkpoint.
"""

import base64
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .entries_basis_sharing import Factors
from .format_basis_sharing import FormatError, Grid
from .rounded_basis_sharing import matrix_layer

_BEYOND_CACHE = 2**19  # numbers


class FactorizedLinear(nn.Module):
    """A projection y = x B C + b with a basis that other projections may share.

    In the pivoted form, with the inputs in order, x B = x[:rank] + x[rank:] B~ for the stored rows B~ of B.

    Args:
        d_in: Number of input features.
        rank: Number of basis vectors.
        d_out: Number of output features.
        bias: Whether a bias is added.
        pivoted: Whether ``rank`` rows of B are the identity and only the others are stored. If they are not the first
            ones, :attr:`order` has to be set before the module is used.
        rows: First row of B transposed in the tensor that holds it, and the rows of that tensor, if bases of several
            groups with one input are stored side by side; None: it is a tensor of its own.
        basis_grid: What the basis is rounded to; None: it is not.
        coeff_grid: What the coefficients are rounded to; None: they are not.
        device: Device of the (uninitialised) weights.
        dtype: Dtype of the weights.

    Attributes:
        basis: ``nn.Linear`` (in few bits: ``RoundedLinear``) whose weight is, or holds, B transposed (the stored rows
            of B); shared by the group.
        coeff: The same from ``rank`` to ``d_out``; its weight is C transposed, private to the projection.
        pivoted: Whether the factors are pivoted.
        order: Indices of the inputs in order, int32, shape ``[d_in]``; None: they are in order already.
        rank: Number of basis vectors.
        first: First of its rows in the weight of ``basis``.
        group: Name of the group, the same for all projections with this basis.
        stored_in: Name of the tensor that holds the basis.
        order_name: Name of the order, the same for all projections with this order.
        reading: Computes, once, what projections that read the same input have in common.
        sharers: Number of projections that use the weight of ``basis``, this one included.
    """

    order: torch.Tensor | None
    group: str = ""
    stored_in: str = ""
    order_name: str = ""
    sharers: int = 1
    basis: nn.Linear  # or, in few bits, RoundedLinear
    coeff: nn.Linear

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        bias: bool,
        pivoted: bool = False,
        rows: tuple[int, int] | None = None,
        basis_grid: Grid | None = None,
        coeff_grid: Grid | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.first, stored = rows or (0, rank)
        self.basis = matrix_layer(d_in - rank if pivoted else d_in, stored, False, basis_grid, device, dtype)
        self.coeff = matrix_layer(rank, d_out, bias, coeff_grid, device, dtype)
        self.rank, self.pivoted, self.reading = rank, pivoted, Reading()
        self.register_buffer("order", None, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but refuse adapters on a shared basis.

        Every projection would have its own adapter on the one parameter: each merge, and each start that changes the
        weight (PiSSA, OLoRA), would change it for all of them.

        Raises:
            ValueError: ``value`` is an adapter in place of a basis that several projections share.
        """
        if name == "basis" and self.sharers > 1 and (hasattr(value, "base_layer") or hasattr(value, "original_module")):
            raise ValueError(
                f"this basis is shared by {self.sharers} projections, which an adapter on it would change one by one: "
                "put adapters on the coefficients only (target_modules=['coeff']), or leave the bases out "
                "(exclude_modules=['basis'])."
            )
        super().__setattr__(name, value)

    @property
    def in_features(self) -> int:
        """Number of input features."""
        return self.basis.in_features + (self.rank if self.pivoted else 0)

    @property
    def out_features(self) -> int:
        """Number of output features."""
        return self.coeff.out_features

    @property
    def in_few_bits(self) -> bool:
        """Whether basis or coefficients are rounded."""
        return not (isinstance(self.basis, nn.Linear) and isinstance(self.coeff, nn.Linear))

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the basis, or of its scales."""
        return next(p.dtype for p in self.basis.parameters() if p.is_floating_point())

    @property
    def weight(self) -> torch.Tensor:
        """The coefficient matrix, as on disk; architectures read the dtype and device of a projection's weight."""
        return self.coeff.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` of shape ``[..., d_in]`` to ``[..., d_out]``."""
        projected: torch.Tensor = self.coeff(self.reading.once(self.group, x, self._reduced))
        return projected

    def _reduced(self, x: torch.Tensor) -> torch.Tensor:
        """Return x B, shape ``[..., rank]``."""
        ordered = x if self.order is None else self.reading.once(self.order_name, x, self._ordered)
        leading, others = None, ordered
        if self.pivoted:
            leading, others = ordered.split((self.rank, ordered.shape[-1] - self.rank), dim=-1)
        product = self.reading.once(self.stored_in, x, lambda _: self.basis(others))
        own = product if product.shape[-1] == self.rank else product.narrow(-1, self.first, self.rank)
        return own if leading is None else leading + own

    def _ordered(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x[..., order]``, with the fastest of three equivalent implementations.

        On a CPU ``index_select`` iterates over columns, which is slow when ``x`` exceeds the cache (4 times for 2048
        tokens); indexing iterates over rows, but has a larger fixed cost, and its default gradient is slow.
        """
        assert self.order is not None
        if torch.compiler.is_compiling() or not x.is_cpu:
            return x.index_select(-1, self.order)
        if torch.is_grad_enabled():
            ordered: torch.Tensor = _Ordered.apply(x, self.order)  # type: ignore[no-untyped-call]
            return ordered
        return x.index_select(-1, self.order) if x.numel() < _BEYOND_CACHE else x[..., self.order]


class _Ordered(torch.autograd.Function):
    """``x[..., order]``, with a gradient that copies where the default one adds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return x[..., order]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = torch.empty_like(gradient)
        whole[..., ctx.saved_tensors[0]] = gradient
        return whole, None


class Reading:
    """What projections that are called with the same tensor compute from it: the first one does, the others reuse it.

    A result is dropped when all its users have had it, so that nothing is kept between two forward passes.

    Args:
        users: How many projections use a result, by its name; results that are not named have one user.
    """

    def __init__(self, users: Mapping[str, int] | None = None) -> None:
        self.users = dict(users or {})
        # One object, so that threads that run the model at the same time cannot mix their inputs.
        self._kept: _Kept | None = None

    def once(self, name: str, x: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return ``compute(x)``, or the same result if another user of it has computed it for this tensor."""
        users = self.users.get(name, 1)
        if users == 1:
            return compute(x)
        kept = self._kept
        if kept is not None and kept.is_of(x) and name in kept.results:
            result = kept.results[name]
            kept.left[name] -= 1
            if kept.left[name] == 0:
                del kept.results[name], kept.left[name]
                if not kept.results:
                    self._kept = None
            return result
        result = compute(x)
        kept = self._kept
        if kept is None or not kept.is_of(x):
            kept = self._kept = _Kept(x)
        kept.results[name], kept.left[name] = result, users - 1
        return result


class _Kept:
    """The results for one input."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.state = x, _state(x)
        self.results: dict[str, torch.Tensor] = {}
        self.left: dict[str, int] = {}

    def is_of(self, x: torch.Tensor) -> bool:
        """Return whether the results are those of this tensor, unchanged, and in the same mode of autograd."""
        return self.x is x and self.state == _state(x)


def _state(x: torch.Tensor) -> tuple[int, bool]:
    """Return the version of a tensor (0 where it has none) and whether gradients are recorded."""
    version = 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
    return version, torch.is_grad_enabled()


def share_readings(parent: nn.Module) -> None:
    """Give the factorized children of a module one :class:`Reading`: those with one basis or order read one input."""
    children = [child for child in parent.children() if isinstance(child, FactorizedLinear)]
    stored = {child.group: child.stored_in for child in children}
    in_order = {child.group: child.order_name for child in children if child.order is not None}
    members = Counter(child.group for child in children)
    reading = Reading(members + Counter(stored.values()) + Counter(in_order.values()))
    users = Counter(child.stored_in for child in children)
    orders: dict[str, torch.Tensor | None] = {}
    for child in children:
        child.reading, child.sharers = reading, max(child.sharers, users[child.stored_in])
        child.order = orders.setdefault(child.order_name, child.order)


def full_basis(module: FactorizedLinear) -> torch.Tensor:
    """Return the basis B, all rows in the order of the model, shape ``[d_in, rank]``."""
    stored = module.basis.weight.detach()[module.first : module.first + module.rank].T
    if not module.pivoted:
        return stored
    ordered = torch.cat([torch.eye(module.rank, dtype=stored.dtype, device=stored.device), stored])
    if module.order is None:
        return ordered
    full = torch.empty_like(ordered)
    full[module.order] = ordered
    return full


def input_order(entry: Factors, d_in: int) -> torch.Tensor:
    """Return the indices of the inputs in the order of a pivoted entry, the pivots first; int32, shape ``[d_in]``.

    Raises:
        FormatError: The pivots are missing, damaged, or not nested in the order.
    """
    if entry.pivots is None:
        raise FormatError(f"the entry of {entry.owner} in config.json is pivoted, but has no pivots.")
    decode_pivots(entry.pivots, d_in, entry.rank)
    last, parts = torch.zeros(d_in, dtype=torch.bool), []
    for code in entry.order or (entry.pivots,):
        chosen = _flags(code, d_in)
        if (last & ~chosen).any():
            raise FormatError(f"the sets of pivots in the order of {entry.owner} in config.json are not nested.")
        parts.append((chosen & ~last).nonzero()[:, 0])
        last = chosen
    return torch.cat([*parts, (~last).nonzero()[:, 0]]).int()


def encode_pivots(pivots: torch.Tensor, d_in: int) -> str:
    """Return the code in ``config.json`` for the indices of the pivots among ``d_in`` inputs."""
    bits = bytearray(-(-d_in // 8))
    for index in pivots.tolist():
        bits[index // 8] |= 0x80 >> index % 8
    return base64.b64encode(bits).decode("ascii")


def decode_pivots(code: str, d_in: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sorted indices of the pivots and of the other inputs, int32.

    Raises:
        FormatError: The code is damaged or is not for ``rank`` of ``d_in`` inputs.
    """
    chosen = _flags(code, d_in)
    if int(chosen.sum()) != rank:
        raise FormatError(f"config.json marks {int(chosen.sum())} pivots for a basis of rank {rank}.")
    return chosen.nonzero()[:, 0].int(), (~chosen).nonzero()[:, 0].int()


def _flags(code: object, d_in: int) -> torch.Tensor:
    """Return which of ``d_in`` inputs a code marks, shape ``[d_in]``."""
    try:
        bits = base64.b64decode(code if isinstance(code, str) else "", validate=True)
    except ValueError:
        bits = b""
    if len(bits) != -(-d_in // 8):
        raise FormatError(f"the pivots in config.json are not the base64 form of {d_in} bits.")
    in_bytes = torch.tensor(list(bits), dtype=torch.uint8)[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)
    return (in_bytes & 1).flatten()[:d_in].bool()
