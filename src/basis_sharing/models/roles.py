"""The role of a linear module from its name, and the reasons why some weights stay dense."""

import re
from collections.abc import Sequence

from basis_sharing.models.family import MLP, SHARED

_ROLE_BY_NAME = {
    role: frozenset(names.split())
    for role, names in {
        "q": "q_proj query wq q_lin project_q",
        "k": "k_proj key wk k_lin project_k",
        "v": "v_proj value wv v_lin project_v",
        "kv": "kv_proj",
        "qkv": "qkv_proj query_key_value wqkv c_attn qkv w_pack",
        "q_a": "q_a_proj wq_a",
        "kv_a": "kv_a_proj_with_mqa kv_a_proj",
        "q_b": "q_b_proj wq_b",
        "kv_b": "kv_b_proj",
        "o": "o_proj wo out_lin attention_out",
        "gate": "gate_proj c_fc_0 proj_up_gate w_0",
        "up": "up_proj fc1 fc_in c_fc c_fc_1 dense_h_to_4h proj_up w_1 layer_1",
        "gate_up": "gate_up_proj gate_and_up_proj w13",
        "down": "down_proj fc2 fc_out dense_4h_to_h proj_down w_out layer_2",
    }.items()
}
_OUTPUT_NAMES = frozenset({"dense", "c_proj", "out_proj", "proj"})
"""Names of the last projection of attention or of the MLP, depending on the parent module."""

_IN_ATTENTION = re.compile(r"(^|_)(attn|attention)($|_)|^self_?attn|^selfattention", re.IGNORECASE)
_IN_MLP = re.compile(r"(^|_)(mlp|ffn|ff|feed_?forward)($|_)", re.IGNORECASE)

_SHARED_EXPERT = re.compile(r"^shared_?(expert|mlp)s?$")
_MIXERS = "state-space, convolution and linear-attention mixers are left dense"
_LEFT_DENSE = (
    (re.compile(r"router|^gate$|_gate$"), "routers and gates are left dense"),
    (re.compile(r"expert"), "experts are left dense"),
    (re.compile(r"cross_?attn|cross_?attention|encoder_attn"), "cross-attention is left dense"),
    (
        re.compile(r"mamba|ssm|linear_attn|conv|recurrent|rglru|temporal_block"),
        _MIXERS,
    ),
    (re.compile(r"indexer"), "indexers of sparse attention are left dense"),
    (re.compile(r"adapter|lora"), "adapters are left dense"),
)
_STATE_SPACE = re.compile(r"mixer\.(in_proj|x_proj|dt_proj|out_proj|a_log|d)$")
UNKNOWN_ROLE = "its role in the block is not known, so it is left dense"


def role_of(path: str, siblings: frozenset[str]) -> str | None:
    """Return the role of a linear module of a decoder block from its name.

    Args:
        path: Module path inside the block, e.g. ``"self_attn.q_proj"``.
        siblings: Paths of all linear modules of the block; ``w1`` is a gate only next to a ``w3``.

    Returns:
        One of :data:`~basis_sharing.models.family.ROLES`; None if the name is not known, or the module belongs to a
        part that is left dense.
    """
    if special_part(path) is not None:
        return None
    *parents, name = path.split(".")
    role = _role_by_name(parents, name, siblings)
    shared = role in MLP and any(_SHARED_EXPERT.search(part.lower()) for part in parents)
    return f"{SHARED}{role}" if shared else role


def _role_by_name(parents: Sequence[str], name: str, siblings: frozenset[str]) -> str | None:
    """Return the role of a linear module by its name and those of its parents; None if the name is not known."""
    lowered = name.lower()
    if lowered in {"w1", "w2", "w3"}:
        has_gate = ".".join([*parents, name[0] + "3"]) in siblings
        return {"w1": "gate" if has_gate else "up", "w2": "down", "w3": "up"}[lowered]
    if lowered in _OUTPUT_NAMES:
        if any(_IN_ATTENTION.search(part) for part in parents):
            return "o"
        return "down" if any(_IN_MLP.search(part) for part in parents) else None
    return next((role for role, names in _ROLE_BY_NAME.items() if lowered in names), None)


def special_part(path: str) -> str | None:
    """Return the reason why a module or parameter stays dense if it belongs to a part that is never compressed.

    Args:
        path: Module or parameter path inside the block.

    Returns:
        The reason, e.g. for experts and routers; None if the path names no such part.
    """
    for part in path.lower().split("."):
        for pattern, reason in _LEFT_DENSE:
            if pattern.search(part) and not _SHARED_EXPERT.search(part):
                return reason
    return _MIXERS if _STATE_SPACE.search(path.lower()) else None
