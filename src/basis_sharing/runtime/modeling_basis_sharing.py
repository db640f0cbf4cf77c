# SPDX-License-Identifier: Apache-2.0
"""Everything a compressed model needs at run time, in one file that travels with every checkpoint.

A checkpoint keeps its native architecture. ``quantization_config`` in ``config.json`` lists the groups of
projections that share a basis; the quantizer below replaces those projections by :class:`FactorizedLinear`
before the weights are read. The file is self-contained (torch and transformers only): inside the package it is
the implementation, inside a checkpoint it is the remote code that ``trust_remote_code=True`` runs.

On disk ``<projection>.weight`` is the coefficient matrix, shape ``[d_out, rank]``, and
``<owner>.basis.weight`` is the basis, shape ``[rank, d_in]``, stored once per group under its first member.
A loader that does not know the format meets a weight of the wrong shape and stops.

A group of the form ``pivoted`` has ``rank`` pivot rows in its basis that are the identity and are not stored: its
basis has shape ``[rank, d_in - rank]``, and ``pivots`` in ``config.json`` says which of the ``d_in`` inputs they are,
as the base64 form of ``d_in`` bits, first input in the highest bit of the first byte.
"""

import base64
import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

QUANT_METHOD = "basis_sharing"
FORMAT_VERSION = 1
FORMS = ("plain", "pivoted")
_BEYOND_CACHE = 2**19  # numbers


class FormatError(ValueError):
    """The checkpoint contradicts itself, or needs a newer version of this code."""


class FactorizedLinear(nn.Module):
    """A projection y = x B C + b with a basis that other projections may share.

    Args:
        d_in: Number of input features.
        rank: Number of basis vectors.
        d_out: Number of output features.
        bias: Whether a bias is added.
        pivoted: Whether ``rank`` rows of B are the identity and only the others are stored; the module is unusable
            until :meth:`set_pivots` says which ones.
        device: Device of the (uninitialised) weights.
        dtype: Dtype of the weights.

    Attributes:
        basis: ``nn.Linear`` whose weight is B transposed (the stored rows of B) and is shared by the group.
        coeff: ``nn.Linear`` from ``rank`` to ``d_out``; its weight is C transposed, private to the projection.
        pivots: Sorted indices of the inputs that are taken as they are, int32, shape ``[rank]``; None: not pivoted.
        rest: Sorted indices of the other inputs, int32, shape ``[d_in - rank]``; None: not pivoted.
    """

    pivots: torch.Tensor | None
    rest: torch.Tensor | None

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

    def set_pivots(self, pivots: torch.Tensor, rest: torch.Tensor) -> None:
        """Say which inputs are taken as they are, and which the stored rows of the basis belong to."""
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
        """The coefficient matrix, as on disk; architectures ask a projection's weight for its dtype and device."""
        return self.coeff.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` of shape ``[..., d_in]`` to ``[..., d_out]``."""
        if self.pivots is None or self.rest is None:
            hidden = self.basis(x)
        else:
            taken, remaining = _parted(x, self.pivots, self.rest)
            hidden = taken + self.basis(remaining)
        projected: torch.Tensor = self.coeff(hidden)
        return projected


def _parted(x: torch.Tensor, pivots: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x[..., pivots]`` and ``x[..., rest]``, in the quickest of three ways that give the same numbers.

    On a CPU ``index_select`` walks down the columns, which is slow once ``x`` exceeds the cache (4 times for 2048
    tokens); indexing walks along the rows, but costs more to start, and its own gradient is slow.
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
    """The two parts of ``x``: since they are all of it, its gradient is filled in from theirs, and nothing is added."""

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


class BasisSharingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of a compressed checkpoint.

    Args:
        groups: One entry per basis: ``{"members": [module paths, the owner first], "rank": k}``, for a pivoted basis
            also ``"form": "pivoted"`` and ``"pivots"``. The optional key ``dtype`` is reserved for factors that are
            not stored in the model's dtype; this version knows the value ``"model"`` only.
        format_version: Version of the format; newer ones are refused.
        provenance: How the checkpoint was made (method, ratio, package version); not used for loading.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        format_version: int = FORMAT_VERSION,
        provenance: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD
        check_format(format_version, groups)
        self.format_version = format_version
        self.groups = groups
        self.provenance = provenance or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that ``config.json`` stores."""
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "provenance": self.provenance,
            "groups": self.groups,
        }

    def projections(self) -> list[str]:
        """Return the module paths of all compressed projections."""
        return [name for group in self.groups for name in group["members"]]


def check_format(format_version: object, groups: object) -> None:
    """Check what can be checked without the model.

    Raises:
        FormatError: The version is newer than this code, or a group is malformed or repeated.
    """
    if not isinstance(format_version, int) or format_version < 1:
        raise FormatError(f"format_version is {format_version!r} in config.json; a positive integer is needed.")
    if format_version > FORMAT_VERSION:
        raise FormatError(
            f"this checkpoint has format version {format_version}, newer than the version {FORMAT_VERSION} known "
            "here: update basis-sharing."
        )
    if not isinstance(groups, list) or not groups:
        raise FormatError("quantization_config in config.json lists no groups.")
    seen: set[str] = set()
    for group in groups:
        members, rank = group.get("members"), group.get("rank")
        if not members or not all(isinstance(name, str) for name in members):
            raise FormatError(f"a group in config.json has no members: {group}.")
        if not isinstance(rank, int) or rank < 1:
            raise FormatError(f"the group of {members[0]} has rank {rank!r}; a positive integer is needed.")
        if group.get("form", "plain") not in FORMS or group.get("dtype", "model") != "model":
            raise FormatError(
                f"the group of {members[0]} is stored in a form this version does not know: update basis-sharing."
            )
        if (group.get("form") == "pivoted") != isinstance(group.get("pivots"), str):
            raise FormatError(f"the group of {members[0]} must have pivots if, and only if, its form is pivoted.")
        repeated = seen.intersection(members) or {name for name in members if members.count(name) > 1}
        if repeated:
            raise FormatError(f"{min(repeated)} belongs to two groups in config.json.")
        seen.update(members)


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
    raise FormatError(f"{type(module).__name__} is not a linear projection and cannot be factorized.")


def encode_pivots(pivots: torch.Tensor, d_in: int) -> str:
    """Return which of ``d_in`` inputs are pivots, as ``config.json`` stores it."""
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


def set_pivots(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Give every pivoted projection the indices of its group; members share them.

    Raises:
        FormatError: The pivots of a group do not fit its rank and its inputs.
    """
    for group in groups:
        if group.get("form", "plain") != "pivoted":
            continue
        modules = [model.get_submodule(name) for name in group["members"]]
        owner = modules[0]
        assert isinstance(owner, FactorizedLinear)
        indices = decode_pivots(group["pivots"], owner.in_features, owner.rank)
        pivots, rest = (part.to(owner.basis.weight.device) for part in indices)
        for module in modules:
            assert isinstance(module, FactorizedLinear)
            module.set_pivots(pivots, rest)


def install(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Replace every member of ``groups`` by a :class:`FactorizedLinear` on the meta device, and tie the bases.

    Raises:
        FormatError: A member does not exist, is no linear projection, or does not fit its group.
    """
    ties: dict[str, str] = {}
    for group in groups:
        owner: FactorizedLinear | None = None
        for name in group["members"]:
            parent_name, _, child = name.rpartition(".")
            try:
                parent = model.get_submodule(parent_name)
                old = parent.get_submodule(child)
            except AttributeError:
                raise FormatError(f"config.json names {name}, which this architecture does not have.") from None
            d_in, d_out = linear_shape(old)
            has_bias, dtype = old.bias is not None, next(old.parameters()).dtype
            pivoted = group.get("form") == "pivoted"
            new = FactorizedLinear(d_in, group["rank"], d_out, has_bias, pivoted, device="meta", dtype=dtype)
            if owner is None:
                owner, owner_name = new, name
            elif owner.in_features != d_in:
                raise FormatError(f"{name} reads {d_in} features but shares a basis of {owner.in_features}.")
            else:
                new.basis.weight = owner.basis.weight
                ties[f"{name}.basis.weight"] = f"{owner_name}.basis.weight"
            setattr(parent, child, new)
    declare_ties(model, ties)


def declare_ties(model: nn.Module, ties: dict[str, str]) -> None:
    """Tell transformers which parameters are one, as ``{alias: owner}``.

    Class attributes are not enough: without tied embeddings transformers ignores them, so both attributes are set
    on the instance.
    """
    inherited = getattr(model, "_tied_weights_keys", None)
    model._tied_weights_keys = {**(inherited if isinstance(inherited, dict) else {}), **ties}  # type: ignore[assignment]
    model.all_tied_weights_keys = {**getattr(model, "all_tied_weights_keys", {}), **ties}  # type: ignore[assignment]


def weight_renamings(names: Iterable[str]) -> list[Any]:
    """Map the names on disk to the names in memory (transformers reverses them when it saves)."""
    from transformers.core_model_loading import WeightRenaming

    projections = "(" + "|".join(re.escape(name) for name in names) + ")"
    return [WeightRenaming(rf"{projections}\.{kind}", rf"\1.coeff.{kind}") for kind in ("weight", "bias")]


class BasisSharingQuantizer(HfQuantizer):  # type: ignore[misc]
    """Installs the factorized projections when transformers loads a compressed checkpoint."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        install(model, self.quantization_config.groups)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for module in model.modules():
            if isinstance(module, FactorizedLinear):
                # Older releases of transformers 5 leave renamed tensors in the dtype they have on disk.
                module.coeff.to(module.basis.weight.dtype)
        set_pivots(model, self.quantization_config.groups)
        # The factors are ordinary weights: half(), float() and training, which this flag forbids, are welcome.
        model.is_quantized = False  # type: ignore[assignment]
        adopt(model)
        return model

    def get_weight_conversions(self) -> list[Any]:
        """Return the renamings between disk and memory."""
        return weight_renamings(self.quantization_config.projections())

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Refuse to offload a shared basis to disk, which accelerate cannot do."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "a model with shared bases cannot be offloaded to disk: choose a device_map that keeps it in memory."
            )

    def is_serializable(self, **_: Any) -> bool:
        """``save_pretrained`` writes the same format."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """The factors themselves can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` works."""
        return True


def adopt(model: Any) -> None:
    """Give a loaded or compressed model the class that carries this file along.

    The class has the native name and behaviour; transformers then copies this file into every folder it saves and
    fills in ``auto_map``, so that re-saved folders load with ``trust_remote_code=True`` as well.
    """
    for part in (model, model.config):
        if type(part).__module__ != __name__:
            part.__class__ = _carrier(type(part).__name__)


def _carrier(name: str) -> type:
    """Return the subclass of the transformers class ``name`` that belongs to this file."""
    native = getattr(transformers, name, None)
    if not isinstance(native, type) or not issubclass(
        native, (transformers.PreTrainedModel, transformers.PretrainedConfig)
    ):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    auto_class = "AutoConfig" if issubclass(native, transformers.PretrainedConfig) else "AutoModelForCausalLM"
    if name not in globals():
        members: dict[str, Any] = {"__module__": __name__, "__doc__": native.__doc__, "_auto_class": auto_class}
        if auto_class != "AutoConfig":
            # transformers skips the architecture's own weight conversions for what it takes for foreign code.
            members["is_custom_code"] = classmethod(lambda cls: False)
        globals()[name] = type(native)(name, (native,), members)
    carrier: type = globals()[name]
    return carrier


def __getattr__(name: str) -> type:
    """Resolve the names in ``auto_map``, e.g. ``modeling_basis_sharing.LlamaForCausalLM``, for any architecture."""
    return _carrier(name)


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BasisSharingConfig
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BasisSharingQuantizer
