"""An interface to the optional package lm-evaluation-harness, without its messages and progress bars."""

import contextlib
import difflib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_sharing.errors import CorpusError, RecipeError

_SEED = 1234  # the harness's default; required although nothing is sampled without solved examples


@dataclass(frozen=True)
class TaskRun:
    """The results of the harness on one task.

    Attributes:
        version: Version of the task.
        means: The mean of each metric.
        samples: One dict per example, with its prompts, the model's answers, and each metric.
        full: Whether some prompts reach the model's limit of tokens; the start of longer ones is cut off.
    """

    version: str
    means: dict[str, float]
    samples: list[dict[str, Any]]
    full: bool

    def error(self, metric: str) -> float | None:
        """Return the standard error of the mean of a metric; None if there is no such metric, or a single example."""
        from lm_eval.api.metrics import mean_stderr

        if metric not in self.means or len(self.samples) < 2:
            return None
        return float(mean_stderr([sample[metric] for sample in self.samples]))

    def marks(self, metric: str) -> tuple[bool, ...] | None:
        """Return which examples are right; None if there is no such metric, or it gives fractional points."""
        if metric not in self.means:
            return None
        values = [float(sample[metric]) for sample in self.samples]
        return tuple(value == 1 for value in values) if set(values) <= {0.0, 1.0} else None


def require() -> None:
    """Make sure that the harness can be imported.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"zero-shot tasks need lm-evaluation-harness ({error}): pip install 'basis-sharing[eval]'."
        ) from None


def version() -> str:
    """Return the version of the harness."""
    return importlib.metadata.version("lm_eval")


def definitions() -> Path:
    """Return the harness's folder of tasks."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: a suggestion of the nearest known names, or a full stop if there are none."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else "."


def load_tasks(names: Sequence[str], folders: Sequence[Path] | None) -> list[Any]:
    """Return tasks with their examples; groups and tags are replaced by their tasks.

    Args:
        names: Names of tasks, groups or tags.
        folders: Folders with their definitions; None: all of the harness, which takes seconds to search.

    Raises:
        RecipeError: A name is unknown.
        CorpusError: The examples of a task cannot be fetched.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(folders or ()), include_defaults=folders is None)
    for name in names:
        if name not in manager.all_tasks:
            raise RecipeError(
                f"unknown task {name!r}{did_you_mean(name, manager.all_tasks)} The harness lists its own with lm-eval "
                "ls tasks."
            )
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            tasks |= manager.load([name])["tasks"]
        except Exception as error:  # no network, a missing or gated data set: each library has its own error types
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CorpusError(
                f"the examples of {name} cannot be fetched from the Hugging Face Hub ({reason[0].rstrip('.')}): check "
                "the network, or give a folder that holds them with --task-data."
            ) from error
    return list(tasks.values())


def wrap(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return a model in memory wrapped for the harness."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def run(wrapped: Any, task: Any, limit: int | None, report: Callable[[int, int], None]) -> TaskRun:
    """Return the results of a model on a task, without solved examples in the prompt.

    Args:
        wrapped: The model, from :func:`wrap`.
        task: The task, from :func:`load_tasks`.
        limit: Use only the first examples; None: all.
        report: Receives the number of scored answers and their total number.
    """
    from lm_eval.evaluator import evaluate

    task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)
    done, longest = 0, 0

    def count(_: Any, arguments: tuple[Any, ...], __: Any) -> None:
        nonlocal done, longest
        rows, tokens = arguments[0].shape
        done, longest = done + rows, max(longest, tokens)
        report(done, len(task.instances))

    hook = wrapped.model.register_forward_hook(count)
    try:
        # simple_evaluate would run pip, git and nvidia-smi each time to describe the machine.
        results = evaluate(
            wrapped,
            {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    finally:
        hook.remove()
    report(len(task.instances), len(task.instances))  # fewer rows: one-token answers to a question share one
    samples = results["samples"][task.task_name]
    filter_name = samples[0]["filter"]
    ending = f",{filter_name}"
    return TaskRun(
        version=str(results["versions"][task.task_name]),
        means={
            name.removesuffix(ending): value
            for name, value in results["results"][task.task_name].items()
            if name.endswith(ending) and isinstance(value, float | int)
        },
        samples=[sample for sample in samples if sample["filter"] == filter_name],
        full=longest >= wrapped.max_length,
    )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress the log and the progress bars of the harness and of datasets within the context."""
    import datasets
    from lm_eval.api import model, task
    from lm_eval.models import huggingface
    from tqdm import tqdm

    def hidden(*arguments: Any, **settings: Any) -> Any:
        return tqdm(*arguments, **{**settings, "disable": True})

    log = logging.getLogger("lm_eval")
    level, hidden_before = log.level, datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    # Some of its progress bars cannot be disabled, and tqdm reads its own setting only when it is imported.
    for module in (model, task, huggingface):
        module.tqdm = hidden
    try:
        yield
    finally:
        for module in (model, task, huggingface):
            module.tqdm = tqdm
        log.setLevel(level)
        if not hidden_before:
            datasets.enable_progress_bars()
