"""A probing forward pass that determines which projections read the same tensor."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from basis_sharing.errors import ModelError
from basis_sharing.models.multimodal import auto_class_of_model, is_multimodal
from basis_sharing.runtime.modeling_basis_sharing import mend

_TOKENS = 8


class Reading(NamedTuple):
    """Identity of a tensor when a module reads it; equal for a tensor and its reshapes."""

    storage: int
    offset: int
    elements: int
    features: int
    version: int


def read_inputs(model: PreTrainedModel, names: Iterable[str]) -> dict[str, list[Reading]]:
    """Return the inputs that modules read in one forward pass over a few tokens.

    The pass runs on the meta device, without memory or arithmetic, if the architecture supports it; otherwise on the
    given model itself.

    Args:
        model: A causal language model, real or on the meta device.
        names: Paths of the modules to watch.

    Returns:
        The readings of each module in call order; empty if it was not called.

    Raises:
        ModelError: No forward pass succeeds.
    """
    watched = list(names)
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # transformers builds masks from values, which meta tensors do not have; a 4-D mask is passed through
    # unchanged. The few architectures that accept no such mask run without one.
    mask = torch.zeros(1, 1, _TOKENS, _TOKENS, dtype=torch.bfloat16, device="meta")
    failure: Exception | None = None
    try:
        skeleton = _skeleton(model)
        for arguments in ({"attention_mask": mask}, {}):
            try:
                return _watch(skeleton, watched, input_ids=tokens, **arguments)
            except Exception as error:  # architectures raise errors of any type
                failure = error
    except Exception as error:
        failure = error
    if model.device.type != "meta":
        try:
            return _watch(model, watched, input_ids=torch.zeros_like(tokens, device=model.device))
        except Exception as error:
            failure = error
    lines = str(failure).strip().splitlines()
    reason = lines[0].rstrip(".") if lines else type(failure).__name__
    if is_multimodal(model) and "meta" not in reason:
        raise ModelError(
            f"{type(model).__name__} does not run on text alone ({reason}); only multimodal models whose language "
            "model can be used without a picture or sound work."
        ) from failure
    raise ModelError(
        f"{type(model).__name__} cannot be probed for which projections read the same input "
        f"({reason}); load the model's weights first or declare its family."
    ) from failure


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    # On the meta device the grouped matrix products of mixture-of-experts models accept only bfloat16.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        skeleton: PreTrainedModel = auto_class_of_model(model).from_config(
            copy.deepcopy(model.config), dtype=torch.bfloat16, attn_implementation="eager"
        )
    mend(skeleton)
    return skeleton.eval()


def _watch(model: PreTrainedModel, names: list[str], **inputs: Any) -> dict[str, list[Reading]]:
    readings: dict[str, list[Reading]] = {name: [] for name in names}
    alive: list[Tensor] = []  # keeps storages alive, so that their addresses are not reused

    def record(name: str, tensor: Tensor) -> None:
        alive.append(tensor)
        readings[name].append(
            Reading(
                tensor.untyped_storage()._cdata,
                int(tensor.storage_offset()),
                tensor.numel(),
                tensor.shape[-1],
                tensor._version,
            )
        )

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    was_training = model.training
    model.eval()
    handles = [model.get_submodule(name).register_forward_pre_hook(hook_for(name), with_kwargs=True) for name in names]
    try:
        with torch.no_grad():
            model(use_cache=False, **inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return readings
