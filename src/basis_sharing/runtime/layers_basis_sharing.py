# SPDX-License-Identifier: Apache-2.0
"""The modules of a compressed model, and their installation from the entries of a checkpoint.

This file is copied into every checkpoint. A *kind* defines how an entry is loaded: :class:`FactorsKind` replaces
projections by :class:`FactorizedLinear`. Other kinds are registered by the packages that define them.
"""

import base64
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .format_basis_sharing import Entry, Factors, FormatError

_BEYOND_CACHE = 2**19  # numbers


class FactorizedLinear(nn.Module):
    """A projection y = x B C + b with a basis that other projections may share.

    Args:
        d_in: Number of input features.
        rank: Number of basis vectors.
        d_out: Number of output features.
        bias: Whether a bias is added.
        pivoted: Whether ``rank`` rows of B are the identity and only the others are stored; :meth:`set_pivots` has to
            be called before the module is used.
        device: Device of the (uninitialised) weights.
        dtype: Dtype of the weights.

    Attributes:
        basis: ``nn.Linear`` whose weight is B transposed (the stored rows of B) and is shared by the group.
        coeff: ``nn.Linear`` from ``rank`` to ``d_out``; its weight is C transposed, private to the projection.
        pivots: Sorted indices of the inputs with identity rows, int32, shape ``[rank]``; None: not pivoted.
        rest: Sorted indices of the other inputs, int32, shape ``[d_in - rank]``; None: not pivoted.
        sharers: Number of projections that share the basis, this one included.
    """

    pivots: torch.Tensor | None
    rest: torch.Tensor | None
    sharers: int = 1

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        bias: bool,
        pivoted: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        stored = d_in - rank if pivoted else d_in
        self.basis = nn.Linear(stored, rank, bias=False, device=device, dtype=dtype)
        self.coeff = nn.Linear(rank, d_out, bias=bias, device=device, dtype=dtype)
        for name, size in (("pivots", rank), ("rest", stored)):
            indices = torch.empty(size, dtype=torch.int32, device=device) if pivoted else None
            self.register_buffer(name, indices, persistent=False)

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

    def set_pivots(self, pivots: torch.Tensor, rest: torch.Tensor) -> None:
        """Set the indices of the inputs with identity rows, and of those with stored rows of the basis."""
        self.pivots, self.rest = pivots, rest

    @property
    def in_features(self) -> int:
        """Number of input features."""
        return self.basis.in_features + (0 if self.pivots is None else self.rank)

    @property
    def out_features(self) -> int:
        """Number of output features."""
        return self.coeff.out_features

    @property
    def rank(self) -> int:
        """Number of basis vectors."""
        return self.basis.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The coefficient matrix, as on disk; architectures read the dtype and device of a projection's weight."""
        return self.coeff.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` of shape ``[..., d_in]`` to ``[..., d_out]``."""
        if self.pivots is None or self.rest is None:
            hidden = self.basis(x)
        else:
            pivoted, remaining = _parted(x, self.pivots, self.rest)
            hidden = pivoted + self.basis(remaining)
        projected: torch.Tensor = self.coeff(hidden)
        return projected


def _parted(x: torch.Tensor, pivots: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x[..., pivots]`` and ``x[..., rest]``, with the fastest of three equivalent implementations.

    On a CPU ``index_select`` iterates over columns, which is slow when ``x`` exceeds the cache (4 times for 2048
    tokens); indexing iterates over rows, but has a larger fixed cost, and its default gradient is slow.
    """
    if torch.compiler.is_compiling() or not x.is_cpu:
        return x.index_select(-1, pivots), x.index_select(-1, rest)
    if torch.is_grad_enabled():
        parts: tuple[torch.Tensor, torch.Tensor] = _Parted.apply(x, pivots, rest)  # type: ignore[no-untyped-call]
        return parts
    if x.numel() < _BEYOND_CACHE:
        return x.index_select(-1, pivots), x.index_select(-1, rest)
    return x[..., pivots], x[..., rest]


class _Parted(torch.autograd.Function):
    """The two parts of ``x``; they are disjoint and complete, so the gradient of ``x`` is assembled without sums."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, pivots: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[..., pivots], x[..., rest]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        whole = gradients[0].new_empty(*gradients[0].shape[:-1], sum(part.shape[-1] for part in gradients))
        for indices, part in zip(ctx.saved_tensors, gradients, strict=True):
            whole[..., indices] = part
        return whole, None, None


class Kind(Protocol):
    """The loading of entries of one kind."""

    def install(self, model: nn.Module, entry: Any) -> dict[str, str]:
        """Replace the members by modules on the meta device; return tied parameters as ``{alias: owner}``.

        Raises:
            FormatError: A member does not exist, is no linear projection, or does not fit the entry.
        """
        ...

    def finish(self, model: nn.Module, entry: Any) -> None:
        """Complete the modules after their weights are loaded.

        Raises:
            FormatError: The entry does not fit the modules.
        """
        ...

    def renamed(self, entry: Any) -> dict[str, str]:
        """Return the names on disk that differ from those in memory, as ``{disk: memory}``."""
        ...

    def weight(self, module: nn.Module) -> torch.Tensor:
        """Return the matrix that a module of this kind multiplies by, shape ``[d_in, d_out]``, fp64."""
        ...


_KINDS: dict[str, Kind] = {}


def register_kind(name: str, kind: Kind) -> None:
    """Register the loading of entries of a kind.

    Raises:
        ValueError: Another kind has this name.
    """
    known = _KINDS.get(name)
    if known is not None and type(known).__qualname__ != type(kind).__qualname__:
        raise ValueError(f"two kinds of modules are called {name!r}: rename one.")
    _KINDS[name] = kind


def kind_of(entry: Entry) -> Kind:
    """Return the kind that loads an entry.

    Raises:
        FormatError: The kind is not registered.
    """
    if entry.kind not in _KINDS:
        raise FormatError(
            f"entries of kind {entry.kind!r} cannot be loaded here: import the package that defines them."
        )
    return _KINDS[entry.kind]


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module at a path by another one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def projection_at(model: nn.Module, name: str) -> nn.Module:
    """Return the projection at a path.

    Raises:
        FormatError: There is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise FormatError(f"config.json names {name}, which this architecture does not have.") from None


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_in, d_out)`` of a projection that can be replaced.

    Raises:
        FormatError: The module is neither ``nn.Linear`` nor ``Conv1D``.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    raise FormatError(f"{type(module).__name__} is not a linear projection and cannot be replaced.")


class FactorsKind:
    """Loading of entries of the kind ``factors`` as :class:`FactorizedLinear` modules with one basis."""

    def install(self, model: nn.Module, entry: Factors) -> dict[str, str]:
        """Replace the members; see :class:`Kind`."""
        ties: dict[str, str] = {}
        owner: FactorizedLinear | None = None
        for name in entry.members:
            old = projection_at(model, name)
            d_in, d_out = linear_shape(old)
            has_bias, dtype = old.bias is not None, next(old.parameters()).dtype
            new = FactorizedLinear(
                d_in, entry.rank, d_out, has_bias, entry.form == "pivoted", device="meta", dtype=dtype
            )
            if owner is None:
                owner = new
            elif owner.in_features != d_in:
                raise FormatError(f"{name} reads {d_in} features but shares a basis of {owner.in_features}.")
            else:
                new.basis.weight = owner.basis.weight
                ties[f"{name}.basis.weight"] = f"{entry.owner}.basis.weight"
            new.sharers = len(entry.members)
            replace(model, name, new)
        return ties

    def finish(self, model: nn.Module, entry: Factors) -> None:
        """Set the indices of pivoted projections, which all members of the entry share.

        Raises:
            FormatError: The pivots are missing or damaged.
        """
        modules = [
            module for name in entry.members if isinstance(module := model.get_submodule(name), FactorizedLinear)
        ]
        for module in modules:
            # Older releases of transformers 5 keep renamed tensors in their dtype on disk.
            module.coeff.to(module.basis.weight.dtype)
        if entry.form != "pivoted":
            return
        if entry.pivots is None:
            raise FormatError(f"the entry of {entry.owner} in config.json is pivoted, but has no pivots.")
        indices = decode_pivots(entry.pivots, modules[0].in_features, entry.rank)
        pivots, rest = (part.to(modules[0].basis.weight.device) for part in indices)
        for module in modules:
            module.set_pivots(pivots, rest)

    def renamed(self, entry: Factors) -> dict[str, str]:
        """Return the names of weights and biases of the members in memory, by name on disk."""
        return {f"{name}.{part}": f"{name}.coeff.{part}" for name in entry.members for part in ("weight", "bias")}

    def weight(self, module: nn.Module) -> torch.Tensor:
        """Return B C, shape ``[d_in, d_out]``, fp64."""
        assert isinstance(module, FactorizedLinear)
        return full_basis(module).double() @ module.coeff.weight.detach().double().T


def full_basis(module: FactorizedLinear) -> torch.Tensor:
    """Return the basis B, all rows, shape ``[d_in, rank]``."""
    stored = module.basis.weight.detach().T
    if module.pivots is None or module.rest is None:
        return stored
    full = stored.new_empty(module.in_features, module.rank)
    full[module.pivots] = torch.eye(module.rank, dtype=stored.dtype, device=stored.device)
    full[module.rest] = stored
    return full


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
    try:
        bits = base64.b64decode(code, validate=True)
    except ValueError:
        bits = b""
    if len(bits) != -(-d_in // 8):
        raise FormatError(f"the pivots in config.json are not the base64 form of {d_in} bits.")
    flags = [bool(bits[index // 8] & 0x80 >> index % 8) for index in range(d_in)]
    if sum(flags) != rank:
        raise FormatError(f"config.json marks {sum(flags)} pivots for a basis of rank {rank}.")
    chosen = torch.tensor(flags)
    return chosen.nonzero()[:, 0].int(), (~chosen).nonzero()[:, 0].int()


register_kind(Factors.kind, FactorsKind())
