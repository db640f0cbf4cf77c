# SPDX-License-Identifier: Apache-2.0
"""The transformers quantizer that loads a compressed checkpoint by installing the modules of its entries.

This file and those that it imports are the implementation in the package, and the remote code in a checkpoint, which
``trust_remote_code=True`` runs. They need only torch and transformers. The format is specified in
``format_basis_sharing.py``.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .config_basis_sharing import entries_of_config
from .format_basis_sharing import FORMAT_VERSION, QUANT_METHOD, Entry
from .layers_basis_sharing import kind_of


class BasisSharingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of a compressed checkpoint.

    Args:
        entries: The entries of the projections, in JSON form or as :class:`Entry`.
        format_version: Version of the format; newer ones are refused. Saved configurations have this code's version.
        provenance: How the checkpoint was made (method, ratio, package version); not used for loading.
        groups: The groups of format version 1, which has no entries.
    """

    def __init__(
        self,
        entries: Any = None,
        format_version: int = FORMAT_VERSION,
        provenance: dict[str, Any] | None = None,
        groups: Any = None,
        **_: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD
        given = {"format_version": format_version, "entries": entries, "groups": groups}
        self.entries: tuple[Entry, ...] = entries_of_config(given)
        self.provenance = provenance or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that ``config.json`` stores."""
        return {
            "quant_method": self.quant_method,
            "format_version": FORMAT_VERSION,
            "provenance": self.provenance,
            "entries": [entry.to_dict() for entry in self.entries],
        }


def install(model: nn.Module, entries: Iterable[Entry]) -> None:
    """Replace the members of all entries by modules on the meta device, and tie their shared parameters.

    Raises:
        FormatError: A member does not exist, is no linear projection, or does not fit its entry.
    """
    ties: dict[str, str] = {}
    for entry in entries:
        ties |= kind_of(entry).install(model, entry)
    declare_ties(model, ties)


def declare_ties(model: nn.Module, ties: dict[str, str]) -> None:
    """Declare tied parameters to transformers, as ``{alias: owner}``.

    Both attributes are set on the instance, because transformers ignores class attributes of models without tied
    embeddings.
    """
    inherited = getattr(model, "_tied_weights_keys", None)
    model._tied_weights_keys = {**(inherited if isinstance(inherited, dict) else {}), **ties}  # type: ignore[assignment]
    model.all_tied_weights_keys = {**getattr(model, "all_tied_weights_keys", {}), **ties}  # type: ignore[assignment]


def conversions_beside(entries: Sequence[Entry], conversions: Iterable[Any]) -> list[Any]:
    """Return those of the architecture's own weight conversions with which a compressed model is saved and loaded.

    There are none if one of them merges members of the entries with other weights into one tensor on disk, which cannot
    hold factors: such a model is stored under its names in memory.
    """
    conversions = list(conversions)
    weights = [f"{name}.weight" for entry in entries for name in entry.members]
    weights += [name for entry in entries for name in entry.on_disk()]
    for conversion in conversions:
        if type(conversion).__name__ == "WeightConverter":
            reverse = conversion.reverse_transform()
            if any(reverse.rename_source_key(name)[1] is not None for name in weights):
                return []
    return conversions


def weight_renamings(entries: Iterable[Entry]) -> list[Any]:
    """Return the renamings from names on disk to names in memory; transformers reverses them when it saves."""
    from transformers.core_model_loading import WeightRenaming

    names = {disk: memory for entry in entries for disk, memory in kind_of(entry).renamed(entry).items()}
    # One pattern for all projections with the same change of names: a thousand patterns would make loading slow.
    alike: dict[tuple[str, str], list[str]] = {}
    for disk, memory in names.items():
        common = 0
        while common < min(len(disk), len(memory)) and disk[common] == memory[common]:
            common += 1
        prefix = disk[:common].rpartition(".")[0]
        alike.setdefault((disk[len(prefix) :], memory[len(prefix) :]), []).append(prefix)
    return [
        WeightRenaming(rf"({'|'.join(map(re.escape, prefixes))}){re.escape(old)}", rf"\1{new}")
        for (old, new), prefixes in alike.items()
    ]


class BasisSharingQuantizer(HfQuantizer):  # type: ignore[misc]
    """Installs the factorized projections when transformers loads a compressed checkpoint."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        install(model, self.quantization_config.entries)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for entry in self.quantization_config.entries:
            kind_of(entry).finish(model, entry)
        # The factors are ordinary weights, for which half(), float() and training work; this flag would forbid them.
        model.is_quantized = False  # type: ignore[assignment]
        adopt(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *model: nn.Module) -> list[Any]:
        """Return all conversions between disk and memory; older releases of transformers 5 do not pass the model."""
        native = conversions_beside(self.quantization_config.entries, weight_conversions)
        updated: list[Any] = super().update_weight_conversions(native, *model)
        return updated

    def get_weight_conversions(self) -> list[Any]:
        """Return the renamings between disk and memory."""
        return weight_renamings(self.quantization_config.entries)

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Refuse to offload shared bases to disk, which accelerate does not support.

        Raises:
            ValueError: The device map contains ``"disk"``.
        """
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "a model with shared bases cannot be offloaded to disk: choose a device_map that keeps it in memory."
            )

    def is_serializable(self, **_: Any) -> bool:
        """Return True: ``save_pretrained`` writes the same format."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: the factors themselves can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: ``torch.compile`` is supported."""
        return True


def adopt(model: Any) -> None:
    """Change the class of a loaded or compressed model, and of its configuration, to a subclass in this file.

    The subclass has the native name and behaviour. transformers then copies these files into every folder it saves and
    sets ``auto_map``, so that re-saved folders load with ``trust_remote_code=True`` as well.
    """
    mend(model)
    for part in (model, model.config):
        if type(part).__module__ != __name__:
            part.__class__ = _carrier(type(part).__name__)


def mend(model: Any) -> None:
    """Make Llama 4 callable where its class in transformers (5.24) reads a field that its text part does not return."""
    if type(model).__name__ != "Llama4ForConditionalGeneration":
        return
    if _with_image_outputs not in model.language_model._forward_hooks.values():
        model.language_model.register_forward_hook(_with_image_outputs)


def _with_image_outputs(_: nn.Module, __: Any, output: Any) -> None:
    if not isinstance(output, tuple) and not hasattr(output, "image_outputs"):
        output.image_outputs = None


def _carrier(name: str) -> type:
    """Return the subclass of the transformers class ``name`` that belongs to this file."""
    native = getattr(transformers, name, None)
    if not isinstance(native, type) or not issubclass(
        native, (transformers.PreTrainedModel, transformers.PretrainedConfig)
    ):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    auto_class = "AutoConfig" if issubclass(native, transformers.PretrainedConfig) else auto_class_of(name)
    if name not in globals():
        members: dict[str, Any] = {"__module__": __name__, "__doc__": native.__doc__, "_auto_class": auto_class}
        if auto_class != "AutoConfig":
            # transformers skips the architecture's own weight conversions for custom code.
            members["is_custom_code"] = classmethod(lambda cls: False)
        globals()[name] = type(native)(name, (native,), members)
    carrier: type = globals()[name]
    return carrier


def auto_class_of(name: str) -> str:
    """Return the name of the transformers class that loads models of the class ``name`` without being told its name."""
    by_task = {
        "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    }
    config = getattr(getattr(transformers, name, None), "config_class", None)
    known = [
        auto_class
        for auto_class, mapping in by_task.items()
        for listed in getattr(modeling_auto, mapping, {}).values()
        if name == listed or (isinstance(listed, tuple) and name in listed)
    ]
    # Some language models are listed among those that see as well.
    if not known or ("AutoModelForCausalLM" in known and "text_config" not in getattr(config, "sub_configs", {})):
        return "AutoModelForCausalLM"
    return known[0]


def __getattr__(name: str) -> type:
    """Return the class of a name in ``auto_map``, e.g. ``modeling_basis_sharing.LlamaForCausalLM``."""
    return _carrier(name)


def _known_version() -> int:
    """Return the format version of the code that is registered, 0 for none: folders carry the code of their time."""
    known = AUTO_QUANTIZATION_CONFIG_MAPPING.get(QUANT_METHOD)
    return 0 if known is None else getattr(sys.modules.get(known.__module__), "FORMAT_VERSION", 0)


if _known_version() < FORMAT_VERSION:
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BasisSharingConfig
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BasisSharingQuantizer
