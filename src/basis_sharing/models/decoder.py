"""The compressible structure of one model, and access to its weights."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from basis_sharing.errors import ModelError
from basis_sharing.models.detect import Detection, detect, find_blocks
from basis_sharing.models.experts import find_experts
from basis_sharing.models.families import family_in
from basis_sharing.models.family import ROLES, Decoder, Family, LeftDense, Projection
from basis_sharing.models.linears import features, is_dense, is_matrix_module
from basis_sharing.models.multimodal import is_multimodal, text_stack
from basis_sharing.models.probe import read_inputs
from basis_sharing.models.roles import UNKNOWN_ROLE, special_part


def describe(model: PreTrainedModel) -> Decoder:
    """Describe which parts of a causal language model, alone or inside a multimodal one, can be compressed.

    Args:
        model: The model, real or on the meta device.

    Returns:
        Its blocks, its projections and the weights that stay dense.

    Raises:
        ModelError: The structure cannot be detected, or nothing in it can be compressed.
    """
    declared = family_in(model.config)
    if declared is not None and is_multimodal(model):
        declared = replace(declared, blocks=find_blocks(model, text_stack(model)))
        read_inputs(model, ())  # refuses what needs a picture with every text
    detection = Detection(declared) if declared is not None else detect(model)
    family = detection.family
    try:
        stack = model.get_submodule(family.blocks)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} has no {family.blocks}; load it with its language modelling head "
            "(AutoModelForCausalLM)."
        ) from error
    blocks = tuple(f"{family.blocks}.{name}" for name, _ in stack.named_children())
    projections, reasons = _projections(model, family, blocks)
    experts, others = find_experts(model, blocks)
    compressible = {p.name for p in (*projections, *experts)}
    left_dense = _left_dense(model, blocks, compressible, {**detection.reasons, **reasons, **others})
    if not projections:
        raise ModelError(f"{type(model).__name__} {_nothing_to_compress(left_dense)}.")
    return Decoder(family, blocks, tuple(projections), left_dense, tuple(experts))


def _nothing_to_compress(left_dense: Sequence[LeftDense]) -> str:
    """Return the end of a sentence that says why no projection of a model can be compressed."""
    if not left_dense:
        return "has no projection that can be compressed"
    largest = max(left_dense, key=lambda left: left.parameters)
    others = "" if len(left_dense) == 1 else f" and {len(left_dense) - 1} other kinds of weights"
    return f"has no projection that can be compressed: {largest.reason} ({largest.name}{others})"


def module(model: nn.Module, name: str) -> nn.Module:
    """Return the module at a path, e.g. a projection or a block."""
    return model.get_submodule(name)


def weight(model: nn.Module, projection: Projection) -> Tensor:
    """Return the weight of a projection as ``[d_in, d_out]``, so that ``y = x @ weight``.

    The result is a view of the model's parameter, on its device and in its dtype.
    """
    stored = parameter(model, projection)
    return stored if projection.transposed else stored.T


def with_roles(decoder: Decoder, roles: Sequence[str] | None) -> Decoder:
    """Return a decoder with only the projections and experts of some roles; None: all roles.

    Raises:
        ModelError: The model has no projections of a role.
    """
    if roles is None:
        return decoder
    present = list(dict.fromkeys(p.role for p in decoder.parts))
    for role in roles:
        if role not in present:
            raise ModelError(f"this model has no projections of role {role!r}: choose from {', '.join(present)}.")
    projections = tuple(p for p in decoder.projections if p.role in roles)
    return replace(decoder, projections=projections, experts=tuple(e for e in decoder.experts if e.role in roles))


def parameter(model: nn.Module, projection: Projection) -> Tensor:
    """Return the weight of a projection in the orientation in which the model stores it."""
    stored = module(model, projection.name).weight
    assert isinstance(stored, Tensor)
    return stored


def bias(model: nn.Module, projection: Projection) -> Tensor | None:
    """Return the bias of a projection, shape ``[d_out]``; None if it has none."""
    stored = module(model, projection.name).bias
    assert stored is None or isinstance(stored, Tensor)
    return stored


def _projections(
    model: PreTrainedModel, family: Family, blocks: tuple[str, ...]
) -> tuple[list[Projection], dict[str, str]]:
    """Return all projections in order, and the reason why a linear module is none, by its path inside a block."""
    slots = sorted(
        ((role, path, name) for name, members in family.inputs.items() for role, path in members.items()),
        key=lambda slot: ROLES.index(slot[0]),
    )
    projections: list[Projection] = []
    reasons: dict[str, str] = {}
    owner: dict[int, str] = {}  # id of a weight -> path of the first projection that uses it
    for index, block in enumerate(blocks):
        present = dict(model.get_submodule(block).named_modules(remove_duplicate=False))
        for role, path, input_name in slots:
            candidate = present.get(path)
            if candidate is None:
                continue  # in hybrid stacks not every block has every projection
            if not is_matrix_module(candidate):
                reasons[path] = f"it is a {type(candidate).__name__}, not a plain linear layer, so it is left as it is"
            elif not is_dense(candidate):
                reasons[path] = "its weight is quantized, so it is left as it is"
            elif id(candidate.weight) in owner:
                reasons[path] = "the model itself uses one weight in several places, so it is left dense"
            else:
                owner[id(candidate.weight)] = path
                d_in, d_out, transposed = features(candidate)
                projections.append(
                    Projection(
                        name=f"{block}.{path}",
                        block=index,
                        role=role,
                        input=input_name,
                        d_in=d_in,
                        d_out=d_out,
                        bias=candidate.bias is not None,
                        transposed=transposed,
                    )
                )
    # The first module that uses a tied weight stays dense as well.
    tied = {path for path, reason in reasons.items() if "several places" in reason}
    return [p for p in projections if p.name.removeprefix(f"{blocks[p.block]}.") not in tied], reasons


def block_parameters(model: PreTrainedModel, blocks: tuple[str, ...]) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield ``(block, path inside the block, parameter)`` for every parameter of the blocks, each once."""
    seen: set[int] = set()
    for block in blocks:
        for path, parameter in model.get_submodule(block).named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield block, path, parameter


def left_dense_name(blocks: tuple[str, ...], path: str) -> str:
    """Return the name under which a matrix of all blocks is listed: numbers become ``*``, ``.weight`` is removed."""
    stack = blocks[0].rpartition(".")[0]
    inner = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path.removesuffix(".weight"))
    return f"{stack}.*.{inner}"


def is_matrix(path: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter of a block is a weight matrix and not a norm, bias or scalar."""
    return parameter.dim() >= 2 and "bias" not in path.rpartition(".")[2]


def _left_dense(
    model: PreTrainedModel, blocks: tuple[str, ...], compressible: set[str], reasons: Mapping[str, str]
) -> tuple[LeftDense, ...]:
    counts: dict[str, int] = defaultdict(int)
    why: dict[str, str] = {}
    for block, path, parameter in block_parameters(model, blocks):
        owner = path.rpartition(".")[0]
        if not is_matrix(path, parameter) or f"{block}.{owner}" in compressible:
            continue
        name = left_dense_name(blocks, path)
        counts[name] += parameter.numel()
        why.setdefault(name, reasons.get(owner) or _reason(path))
    return tuple(LeftDense(name, why[name], counts[name]) for name in counts)


def _reason(path: str) -> str:
    return special_part(path) or UNKNOWN_ROLE
