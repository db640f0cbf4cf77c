"""The common settings of the measuring verbs: how models are loaded, and which tasks are scored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basis_sharing.blocks.placing import placed
from basis_sharing.checkpoint.loading import load_any
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.score_cache import default_folder
from basis_sharing.evaluation.tasks import evaluate_tasks
from basis_sharing.models.source import named_dtype
from basis_sharing.recipe.model import DTYPES
from basis_sharing.results.tasks import TaskResults
from basis_sharing.run.machine import choose
from basis_sharing.run.progress import ProgressCallback


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of a name; None for ``"auto"``.

    Raises:
        RecipeError: There is no such dtype.
    """
    if name not in DTYPES:
        raise RecipeError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}.")
    return named_dtype(name)


def check_least(settings: Mapping[str, tuple[int | None, int]]) -> None:
    """Make sure that no setting is below its smallest allowed value.

    Args:
        settings: Value (None: not given) and smallest allowed value of each setting, by name.

    Raises:
        RecipeError: A setting is too small.
    """
    for name, (value, least) in settings.items():
        if value is not None and value < least:
            raise RecipeError(f"--{name.replace('_', '-')} {value} is too small: at least {least} is needed.")


@dataclass(frozen=True)
class Loading:
    """How models are loaded and where they run.

    Attributes:
        tokenizer: The tokenizer of models given in memory.
        dtype: Name of the dtype that models are loaded in; ``"auto"``: the checkpoint's own.
        device: Name of the device they run on; None: that of a model in memory, else ``"auto"``.
    """

    tokenizer: Any = None
    dtype: str = "auto"
    device: str | None = None

    def check(self) -> None:
        """Make sure that the dtype and the device exist.

        Raises:
            RecipeError: One of them does not.
        """
        torch_dtype(self.dtype)
        choose(self.device or "auto")

    def load(self, model: str | Path | Any) -> tuple[Any, Any]:
        """Return a model and its tokenizer; a model given in memory is returned unchanged.

        Raises:
            ModelError: The model cannot be loaded.
            CheckpointError: A compressed folder is inconsistent or too new.
        """
        if isinstance(model, (str, Path)):
            return load_any(model, torch_dtype(self.dtype), choose(self.device or "auto"))
        return model, self.tokenizer

    @contextmanager
    def placed(self, *models: str | Path | Any) -> Iterator[None]:
        """Move models given in memory to the device within the context; models given by name are ignored."""
        with ExitStack() as stack:
            for model in models:
                if self.device is not None and not isinstance(model, (str, Path)):
                    stack.enter_context(placed(model, choose(self.device)))
            yield


@dataclass(frozen=True)
class Scoring:
    """The zero-shot tasks on which models are scored.

    Attributes:
        tasks: Their names, as a sequence or separated by commas; empty: none.
        data: Folder with their examples; None: the harness fetches them.
        limit: Use only the first examples of each task; None: all.
        cache: Whether scores are read from and kept in the user's cache folder.
    """

    tasks: str | Sequence[str] = ()
    data: str | Path | None = None
    limit: int | None = None
    cache: bool = True

    @property
    def asked(self) -> bool:
        """Whether any tasks are to be scored."""
        return isinstance(self.tasks, str) or bool(self.tasks)

    def check(self) -> None:
        """Check the settings of the tasks.

        Raises:
            RecipeError: Settings about tasks are given without tasks, or the limit is too small.
        """
        if not self.asked and (self.data is not None or self.limit is not None or not self.cache):
            raise RecipeError("--task-data, --limit and --no-cache are about tasks: name some with --tasks.")
        check_least({"limit": (self.limit, 1)})

    def score(self, model: str | Path | Any, loading: Loading, progress: ProgressCallback) -> TaskResults:
        """Return the scores of a model, see :func:`~basis_sharing.evaluation.tasks.evaluate_tasks`."""
        return evaluate_tasks(
            model,
            self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks,
            tokenizer=loading.tokenizer,
            data=None if self.data is None else Path(self.data),
            limit=self.limit,
            dtype=torch_dtype(loading.dtype),
            device=choose(loading.device or "auto"),
            cache=default_folder() if self.cache else None,
            progress=progress,
        )
