"""The part of lm-evaluation-harness that we use, behind a small and quiet interface. It is an optional package."""

import contextlib
import difflib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basis_sharing.errors import CorpusError, RecipeError

_SEED = 1234  # the harness's own; it draws nothing without solved examples, but wants to have one


@dataclass(frozen=True)
class Measured:
    """What the harness returns about one task.

    Attributes:
        version: Version of the task.
        means: The mean of each metric.
        samples: One dict per example, with its prompts, the model's answers, and each metric.
        full: Whether some prompts fill all the tokens the model can read, and lose their start if they are longer.
    """

    version: str
    means: dict[str, float]
    samples: list[dict[str, Any]]
    full: bool

    def error(self, metric: str) -> float | None:
        """Return the standard error of the mean of a metric; None if there is none."""
        from lm_eval.api.metrics import mean_stderr

        if metric not in self.means or len(self.samples) < 2:
            return None
        return float(mean_stderr([sample[metric] for sample in self.samples]))

    def marks(self, metric: str) -> tuple[bool, ...] | None:
        """Return which examples are right; None if there is no such metric, or it gives parts of a point."""
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
    """Return the end of a sentence that suggests the nearest names, or ends it."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else "."


def load_tasks(names: Sequence[str], folders: Sequence[Path] | None) -> list[Any]:
    """Load tasks with their examples; groups and tags become their tasks.

    Args:
        names: What to load.
        folders: Where their definitions are; None: anywhere in the harness, which takes seconds to search.

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
        except Exception as error:  # no network, a data set that is gone or gated: each library has an error for it
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CorpusError(
                f"the examples of {name} cannot be fetched from the Hugging Face Hub ({reason[0].rstrip('.')}): check "
                "the network, or give a folder that holds them with --task-data."
            ) from error
    return list(tasks.values())


def wrap(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return a model in memory as the harness wants it."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def run(wrapped: Any, task: Any, limit: int | None, report: Callable[[int, int], None]) -> Measured:
    """Score a wrapped model on a task, without solved examples in the prompt.

    Args:
        wrapped: From :func:`wrap`.
        task: From :func:`load_tasks`.
        limit: Use only the first examples; None: all.
        report: Receives how many answers have been scored, and of how many.
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
        # evaluate, not simple_evaluate: that one runs pip, git and nvidia-smi to describe the machine, each time.
        results = evaluate(
            wrapped,
            {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    finally:
        hook.remove()
    report(len(task.instances), len(task.instances))  # answers of one token to the same question share a row
    samples = results["samples"][task.task_name]
    filter_name = samples[0]["filter"]
    ending = f",{filter_name}"
    return Measured(
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
def quiet() -> Iterator[None]:
    """Silence the log and the progress bars of the harness and of datasets: ours say what matters."""
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
    # Not all of its bars have a switch, and tqdm's own is read only once, when tqdm is imported.
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
