"""Detection of the structure of a decoder whose family is not declared."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from basis_sharing.errors import ModelError
from basis_sharing.models.families import needs_bos
from basis_sharing.models.family import ROLES, SHARED, Family
from basis_sharing.models.linears import is_dense, is_matrix_module
from basis_sharing.models.multimodal import text_stack
from basis_sharing.models.probe import Reading, read_inputs
from basis_sharing.models.roles import UNKNOWN_ROLE, role_of, special_part

_SHARED_BY_ANALOGY = ("q", "k", "v", "kv", "qkv", "gate", "up", "gate_up")
_SOURCE = "detected: roles by module names, inputs by a probe, shared roles by analogy with LLaMA"


@dataclass(frozen=True)
class Detection:
    """A detected family, and the linear modules that it leaves out.

    Attributes:
        family: The detected structure.
        reasons: Why a linear module stays dense, by its path inside a block.
    """

    family: Family
    reasons: Mapping[str, str] = field(default_factory=dict)


def detect_family(model: PreTrainedModel) -> Family:
    """Detect the structure of a causal language model, real or on the meta device.

    Args:
        model: The model.

    Returns:
        A family named after the model type, with the roles that could be determined.

    Raises:
        ModelError: There is no stack of decoder blocks, more than one, or the model cannot be probed.
    """
    return detect(model).family


def detect(model: PreTrainedModel) -> Detection:
    """Return the detected family and the reasons for what it leaves out; see :func:`detect_family`."""
    blocks_path = find_blocks(model, text_stack(model))
    blocks = _blocks(model, blocks_path)
    paths = [{name for name, module in block.named_modules() if is_matrix_module(module)} for block in blocks]
    reasons: dict[str, str] = {}
    roles = _roles(blocks, paths, reasons)
    readings = read_inputs(
        model,
        [f"{blocks_path}.{i}.{path}" for i, present in enumerate(paths) for path in sorted(present & roles.keys())],
    )
    by_block = _usable_readings(blocks_path, paths, roles, readings, reasons)
    inputs = _name_inputs(_same_input(by_block, roles), roles)
    model_type = model.config.get_text_config().model_type
    present = {role for members in inputs.values() for role in members}
    family = Family(
        name=model_type,
        model_types=(model_type,),
        blocks=blocks_path,
        inputs=inputs,
        shared_roles=tuple(role for role in _SHARED_BY_ANALOGY if role in present),
        shared_roles_source=_SOURCE,
        needs_bos=needs_bos(model.config),
    )
    return Detection(family, reasons)


def find_blocks(model: nn.Module, within: str = "") -> str:
    """Return the module path of the list of decoder blocks.

    Blocks may be of different classes, as in models that mix attention with state-space layers.

    Args:
        model: The model.
        within: Path of the module that holds the blocks; empty: the whole model.

    Raises:
        ModelError: There is no list of blocks with linear modules, or more than one (encoder and decoder).
    """
    stacks: list[str] = []
    for name, module in model.named_modules():
        if not name.startswith(within):
            continue
        inside_another = any(name.startswith(f"{stack}.") for stack in stacks)
        if isinstance(module, nn.ModuleList) and not inside_another and _is_stack(module):
            stacks.append(name)
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder blocks with linear layers, so there is nothing to "
            "share; use a decoder-only transformer."
        )
    if len(stacks) > 1:
        raise ModelError(
            f"{type(model).__name__} has more than one stack of blocks ({', '.join(stacks)}); only models with a "
            "single stack of decoder blocks can be compressed."
        )
    return stacks[0]


def _is_stack(modules: nn.ModuleList) -> bool:
    """Return whether every item is a block, i.e. contains at least two linear modules."""
    return len(modules) > 0 and all(
        not is_matrix_module(item) and sum(is_matrix_module(child) for child in item.modules()) >= 2 for item in modules
    )


def _blocks(model: PreTrainedModel, path: str) -> list[nn.Module]:
    modules = model.get_submodule(path)
    assert isinstance(modules, nn.ModuleList)
    return list(modules)


def _roles(blocks: list[nn.Module], paths: list[set[str]], reasons: dict[str, str]) -> dict[str, str]:
    """Return the role of linear modules by path; each role is assigned once, to the path with the most parameters."""
    every = frozenset().union(*paths)
    weight: dict[str, int] = defaultdict(int)
    dense: dict[str, bool] = defaultdict(lambda: True)
    for block, present in zip(blocks, paths, strict=True):
        for path in present:
            module = block.get_submodule(path)
            weight[path] += sum(p.numel() for p in module.parameters())
            dense[path] = dense[path] and is_dense(module)
    roles: dict[str, str] = {}
    for path in sorted(every, key=lambda path: (-weight[path], path)):
        role = role_of(path, every)
        if role is None:
            reasons[path] = special_part(path) or UNKNOWN_ROLE
        elif not dense[path]:
            reasons[path] = "its weight is quantized, so it is left dense"
        elif role in roles.values():
            reasons[path] = f"another projection of the blocks already has the role {role}, so it is left dense"
        else:
            roles[path] = role
    return roles


def _usable_readings(
    blocks_path: str,
    paths: list[set[str]],
    roles: dict[str, str],
    readings: dict[str, list[Reading]],
    reasons: dict[str, str],
) -> list[dict[str, Reading]]:
    """Return the reading of every path per block; drop paths that some block has but does not call exactly once."""
    for i, present in enumerate(paths):
        for path in sorted(present & roles.keys()):
            calls = len(readings[f"{blocks_path}.{i}.{path}"])
            if calls != 1:
                reasons[path] = (
                    "a forward pass does not use it in every block that has it, so it is left dense"
                    if calls == 0
                    else "a forward pass uses it more than once, so it is left dense"
                )
                del roles[path]
    return [
        {path: readings[f"{blocks_path}.{i}.{path}"][0] for path in present & roles.keys()}
        for i, present in enumerate(paths)
    ]


def _same_input(by_block: list[dict[str, Reading]], roles: dict[str, str]) -> list[list[str]]:
    """Return a partition of the paths into groups that read one tensor in every block that has them."""

    def together(a: str, b: str) -> bool:
        both = [block for block in by_block if a in block and b in block]
        return bool(both) and all(block[a] == block[b] for block in both)

    groups: list[list[str]] = []
    for path in sorted(roles, key=lambda path: ROLES.index(roles[path])):
        matching = next((group for group in groups if all(together(path, member) for member in group)), None)
        if matching is None:
            groups.append([path])
        else:
            matching.append(path)
    return groups


def _name_inputs(groups: list[list[str]], roles: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return role -> path by input name, with the input names that the declared families use."""
    inputs: dict[str, dict[str, str]] = {}
    for group in groups:
        members = {roles[path]: path for path in group}
        attention = members.keys() & {"q", "k", "v", "kv", "qkv", "q_a", "kv_a"}
        mlp = {role.removeprefix(SHARED) for role in members} & {"gate", "up", "gate_up"}
        if attention and mlp:
            name = "block_in"
        elif attention:
            name = "attention_in"
        elif mlp:
            name = "mlp_in"
        else:
            latent = "attention_latent" if members.keys() & {"q_b", "kv_b"} else "mlp_hidden"
            name = "attention_out" if "o" in members else latent
        inputs[name if name not in inputs else f"{name}_{next(iter(members))}"] = members
    return inputs
