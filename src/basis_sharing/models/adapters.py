"""Adapters of PEFT that lie in the folder of a model."""

import json
from pathlib import Path

from basis_sharing.errors import ModelError

_CONFIG = "adapter_config.json"


def has_adapter(folder: Path) -> bool:
    """Return whether a folder has the configuration of an adapter."""
    return (folder / _CONFIG).is_file()


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter and no model.

    Raises:
        ModelError: It does; the message names the model that the adapter was made for.
    """
    if not has_adapter(folder):
        return
    try:
        base = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    raise ModelError(
        f"{folder} holds an adapter for {base or 'a model it does not name'}, not a model: merge it into that model "
        "first (merge_and_unload of peft) and give the folder of the merged model."
    )


def without_adapter(folder: Path) -> dict[str, dict[str, str]]:
    """Return the arguments of ``from_pretrained`` that keep transformers from applying the adapter in a folder.

    The weights beside it are a model of their own: an adapter that was merged into them would count twice.
    """
    return {"adapter_kwargs": {"subfolder": "no-adapter"}} if has_adapter(folder) else {}


def adapter_notes(folder: Path) -> tuple[str, ...]:
    """Return a note that the adapter in the folder of a model was not applied; nothing without one."""
    if not has_adapter(folder):
        return ()
    return (
        f"{_CONFIG} beside the weights was left aside: the weights count as they are, as if the adapter were merged "
        "into them.",
    )
