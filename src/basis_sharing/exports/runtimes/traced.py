"""What exports to runtimes have in common; graphs are traced by the exporters of transformers.

One graph reads prompts and decodes: token ids, an attention mask over all tokens, positions, and the keys and values of
the tokens before. Batch and lengths are free. A shared basis is one tensor of the graph, however many projections use
it.
"""

import inspect
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.engines.base import ENGINES, installed_version
from basis_sharing.errors import BasisSharingError, ModelError, RecipeError
from basis_sharing.exports.base import Stored
from basis_sharing.run.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

LEAST_TRANSFORMERS = (5, 24)
"""The first release of transformers whose exporters are used here."""
_STAGES = 4


class RuntimeExport(ABC):
    """An export that is compared with the model in its own runtime before it is kept.

    Attributes:
        name: Name of the export and of its engine.
        summary: Its purpose in one sentence.
        stored: The bytes of a number, by the form of the weights; the first is the default.
        packages: Packages that it needs beside the runtime.
        takes_dense: Models that are not compressed can be exported as well, to compare with.
    """

    name: str
    summary: str
    stored: Mapping[str, Stored]
    packages: tuple[str, ...]
    takes_dense = True

    @property
    def weights(self) -> tuple[str, ...]:
        """The forms of weights that it can write."""
        return tuple(self.stored)

    @abstractmethod
    def convert(self, model: "PreTrainedModel", staging: Path, weights: str) -> None:
        """Write the weights and what is computed with them.

        Args:
            model: The model in fp32, without weights in few bits.
            staging: The folder to write to.
            weights: One of :attr:`weights`.
        """

    def configure(self, model: "PreTrainedModel", staging: Path) -> None:
        """Write the configuration of the architecture."""
        native_configuration(model).save_pretrained(staging)

    def describe(self, model: "PreTrainedModel", tokenizer: Any, staging: Path) -> None:
        """Write what the runtime's own tools read beside the model."""
        model.generation_config.save_pretrained(staging)
        tokenizer.save_pretrained(staging)

    def write(self, folder: Path, staging: Path, weights: str | None, progress: ProgressCallback) -> None:
        """Write the model for the runtime, run it there, and compare; see :class:`Export`.

        Raises:
            RecipeError: A package is missing or too old.
            ModelError: The model cannot be loaded or traced, or computes something else in the runtime.
            OutputError: The disk has not enough space.
        """
        import torch

        from basis_sharing.checkpoint.loading import load_any
        from basis_sharing.checkpoint.writer import check_space
        from basis_sharing.exports.runtimes.checking import check, reference_of
        from basis_sharing.exports.runtimes.manifest import write_manifest
        from basis_sharing.models.sizes import memory_bytes, parameter_count
        from basis_sharing.run.files import output_errors

        weights = weights or self.weights[0]
        self.check_packages()

        def stage(done: int, what: str) -> None:
            progress(Progress(what, done, _STAGES, "steps"))

        stage(0, "loading")
        model, tokenizer = load_any(folder, torch.float32)
        parameters = parameter_count(model)
        unpack_weights(model)
        check_space(staging, 2 * memory_bytes(model))
        stage(1, "computing what to compare with")
        reference = reference_of(model, tokenizer)
        stage(2, "converting")
        with output_errors(staging):
            with tracing_errors(folder):
                self.convert(model, staging, weights)
            self.configure(model, staging)
            self.describe(model, tokenizer, staging)
        del model
        stage(3, f"comparing in {ENGINES[self.name].title}")
        found = check(staging, self.name, weights, reference)
        write_manifest(staging, self, weights, parameters, found)
        stage(_STAGES, "comparing")

    def check_packages(self) -> None:
        """Make sure that everything is installed.

        Raises:
            RecipeError: A package is missing or too old.
        """
        import transformers

        engine = ENGINES[self.name]
        for package in (engine.package, *self.packages):
            installed_version(package, engine.extra)
        if tuple(map(int, transformers.__version__.split(".")[:2])) < LEAST_TRANSFORMERS:
            least = ".".join(map(str, LEAST_TRANSFORMERS))
            raise RecipeError(
                f"--to {self.name} needs the exporters of transformers {least}, and {transformers.__version__} is "
                f"installed: pip install 'transformers>={least}'."
            )


def sample_inputs(model: "PreTrainedModel") -> dict[str, Any]:
    """Return arguments of the forward pass of a model: two sequences, of which one is padded, and a filled cache.

    Raises:
        ModelError: The model keeps something else than keys and values.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    from basis_sharing.models.caches import cache_input, cache_of

    ids = torch.arange(18).view(2, 9) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = inspect.signature(model.forward).parameters
    places = {"position_ids": positions} if "position_ids" in accepted else {}
    early = {name: at[:, :5] for name, at in {"input_ids": ids, "attention_mask": mask, **places}.items()}
    with torch.no_grad():
        own = cache_of(model(**early, use_cache=True))
        if type(own) is not DynamicCache or not all(isinstance(layer, DynamicLayer) for layer in own.layers):
            raise other_states(model)
        # All keys and values are kept, those before a sliding window too: the mask hides them.
        cache = cache_of(model(**early, **cache_input(model, DynamicCache()), use_cache=True))
    later = {name: at[:, 5:] for name, at in places.items()}
    return {"input_ids": ids[:, 5:], "attention_mask": mask, **later, **cache_input(model, cache), "use_cache": True}


def other_states(model: "PreTrainedModel") -> ModelError:
    """Return the error for a model that keeps something else than keys and values."""
    return ModelError(
        f"{type(model).__name__} keeps more than keys and values between tokens, which this export does not "
        "support: use --to dense and the runtime's own converter."
    )


def free_shapes(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return which dimensions of sample inputs are free: batch and lengths."""
    import torch
    from transformers.exporters.exporter_dynamo import get_auto_dynamic_shapes

    free = torch.export.Dim.AUTO

    def spec(value: Any) -> Any:
        if isinstance(value, dict):  # of a tensor of the cache: the number of heads and their width are fixed
            return {dimension: free for dimension in value if dimension in (0, 2)}
        return None if value is None else [spec(part) for part in value]

    shapes: dict[str, Any] = {name: {0: free, 1: free} for name, value in inputs.items() if hasattr(value, "dtype")}
    caches = {name: value for name, value in inputs.items() if hasattr(value, "layers")}
    return shapes | {name: spec(get_auto_dynamic_shapes(cache)) for name, cache in caches.items()}


def unpack_weights(model: "nn.Module") -> None:
    """Replace modules with weights in few bits by native ones: runtimes have their own layouts for them."""
    from torch import nn

    from basis_sharing.runtime.layers_basis_sharing import replace
    from basis_sharing.runtime.rounded_basis_sharing import RoundedEmbedding, RoundedLinear

    tables: dict[int, Any] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, RoundedLinear):
            continue
        weight = module.weight.detach()
        new: nn.Module
        if isinstance(module, RoundedEmbedding):
            new = nn.Embedding.from_pretrained(weight * module.multiplier)
            if module.multiplier == 1.0:
                tables[id(module.packed)] = new.weight
        else:
            new = nn.Linear(module.in_features, module.out_features, module.bias is not None, "meta")
            new.weight = tables.get(id(module.packed), nn.Parameter(weight))
            if module.bias is not None:
                new.bias = nn.Parameter(module.bias.detach())
        replace(model, name, new.requires_grad_(False))
    model.eval()


def native_configuration(model: "PreTrainedModel") -> Any:
    """Return the configuration of the architecture, without settings of compression."""
    from basis_sharing.exports.dense import native_config

    return native_config(model.config)


@contextmanager
def tracing_errors(folder: Path) -> Iterator[None]:
    """Silence the libraries within the context, and turn what goes wrong in them into a sentence.

    Raises:
        ModelError: The model cannot be traced or converted.
    """
    from basis_sharing.models.quiet import quiet

    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), open(os.devnull, "w", encoding="utf-8") as nowhere, _no_output(nowhere):
            yield
    except (BasisSharingError, OSError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # of whatever kind an exporter raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__).rstrip(".")
        raise ModelError(
            f"{folder} cannot be converted: {reason} ({type(error).__name__}). Try --to dense and the runtime's own "
            "converter."
        ) from error
    finally:
        logging.disable(logged)


@contextmanager
def _no_output(nowhere: Any) -> Iterator[None]:
    import contextlib

    with contextlib.redirect_stdout(nowhere):
        yield
