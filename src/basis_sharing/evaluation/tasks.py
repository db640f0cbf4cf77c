"""Zero-shot accuracy with the tasks, prompts and scores of lm-evaluation-harness."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basis_sharing.checkpoint.loading import load_any
from basis_sharing.errors import NumericalError, RecipeError
from basis_sharing.evaluation import harness
from basis_sharing.evaluation.score_cache import ScoreCache, question_key, tokenizer_fingerprint
from basis_sharing.evaluation.task_data import LOCAL_TASKS, fingerprint_examples, write_task
from basis_sharing.models.source import dtype_name, fingerprint, load_skeleton, load_tokenizer, resolve
from basis_sharing.results.tasks import TaskResults, TaskScore
from basis_sharing.run.progress import Progress, ProgressCallback, silent

PAPER = ("openbookqa", "arc_easy", "winogrande", "hellaswag", "arc_challenge", "piqa", "mathqa")
ALIASES = {"paper": PAPER}
_BATCH_SIZE = 8


@dataclass(frozen=True)
class _Scored:
    """The model to score: its identity, and a function that loads it when it is needed."""

    name: str
    fingerprint: str | None
    dtype: str
    tokenizer: Any
    load: Callable[[], Any]


@dataclass(frozen=True)
class _Prepared:
    """A task of the harness with its examples."""

    task: Any
    source: str
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.task.task_name)


def evaluate_tasks(
    model: str | Path | Any,
    tasks: Sequence[str] = PAPER,
    *,
    tokenizer: Any = None,
    data: Path | None = None,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> TaskResults:
    """Return the scores of a model on tasks of lm-evaluation-harness, without solved examples in the prompt.

    Args:
        model: A folder, a GGUF file, a hub id, or a model in memory.
        tasks: Names of tasks, groups or tags of the harness, or ``"paper"``.
        tokenizer: The tokenizer of a model given in memory.
        data: A folder with the examples (see :mod:`~basis_sharing.evaluation.task_data`); None: the harness fetches
            them from the hub.
        limit: Use only the first examples of each task; None: all.
        dtype: Dtype to load the model in; None: the checkpoint's own. Ignored for a model given in memory.
        device: Device of the loaded model; None: the CPU. Ignored for a model given in memory.
        cache: Cache folder of scores; None: none. A model given in memory has no fingerprint and is always measured.
        progress: Receives one event per batch.

    Returns:
        The scores, with everything needed to repeat them and to compare models example by example.

    Raises:
        RecipeError: The harness is not installed, a task is unknown or has no accuracy, or the limit is too small.
        CorpusError: The examples of a task cannot be read or fetched.
        ModelError: The model cannot be loaded.
        NumericalError: The model computes NaN.
        OutputError: A score cannot be kept.
    """
    names = task_names(tasks)
    if data is not None:
        _check_local(names)
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit} is too small: at least 1 is needed.")
    harness.require()
    scored = _scored_model(model, tokenizer, dtype, device)
    with tempfile.TemporaryDirectory() as folder, harness.silenced():
        prepared = _from_hub(names) if data is None else _from_folder(names, data, Path(folder))
        scores, notes = _scores(scored, prepared, limit, cache, progress)
    if limit is not None:
        notes = (f"only the first {limit} examples of each task were scored (--limit).", *notes)
    return TaskResults(
        model=scored.name,
        model_fingerprint=scored.fingerprint,
        dtype=scored.dtype,
        limit=limit,
        harness=harness.version(),
        scores=scores,
        notes=tuple(notes),
    )


def task_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of tasks in order and without duplicates, with aliases replaced by their tasks.

    Raises:
        RecipeError: There is none.
    """
    names = [name for item in given if item.strip() for name in ALIASES.get(item.strip(), (item.strip(),))]
    if not names:
        raise RecipeError(f"no task is named: give some of {', '.join([*ALIASES, *LOCAL_TASKS])}, separated by commas.")
    return tuple(dict.fromkeys(names))


def _scored_model(
    model: str | Path | Any, tokenizer: Any, dtype: torch.dtype | None, device: torch.device | None
) -> _Scored:
    if not isinstance(model, (str, Path)):
        return _Scored(type(model).__name__, None, dtype_name(model.dtype), tokenizer, lambda: model)
    source = resolve(model)
    tokenizer = load_tokenizer(source)
    stored = load_skeleton(source).dtype
    return _Scored(
        source.given,
        fingerprint(source),
        dtype_name(dtype or stored),
        tokenizer,
        lambda: load_any(model, dtype, device)[0],
    )


def _check_local(names: Sequence[str]) -> None:
    for name in names:
        if name not in LOCAL_TASKS:
            raise RecipeError(
                f"the examples of {name!r} cannot be read from a folder{harness.did_you_mean(name, LOCAL_TASKS)} The "
                f"tasks that can: {', '.join(LOCAL_TASKS)}; without --task-data the harness fetches those of any task."
            )


def _from_folder(names: Sequence[str], data: Path, folder: Path) -> list[_Prepared]:
    written = [write_task(name, data, folder, harness.definitions()) for name in names]
    tasks = harness.load_tasks(names, [folder])
    return [
        _Prepared(task, str(one.source), fingerprint_examples(list(task.eval_docs)), one.notes)
        for task, one in zip(tasks, written, strict=True)
    ]


def _from_hub(names: Sequence[str]) -> list[_Prepared]:
    if all(name in LOCAL_TASKS for name in names):
        places = [(harness.definitions() / LOCAL_TASKS[name].definition).parent for name in names]
        tasks = harness.load_tasks(names, list(dict.fromkeys(places)))
    else:
        tasks = harness.load_tasks(names, None)
    for task in tasks:
        if "acc" not in task.aggregation():
            raise RecipeError(
                f"the task {task.task_name} has no accuracy (it measures {', '.join(task.aggregation())}): choose "
                "tasks that do."
            )
    return [
        _Prepared(task, f"hub:{task.config.dataset_path}", fingerprint_examples(list(task.eval_docs)), ())
        for task in tasks
    ]


def _scores(
    scored: _Scored, prepared: list[_Prepared], limit: int | None, folder: Path | None, progress: ProgressCallback
) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
    """Return a score for each task, cached or measured, and notes; the model is loaded when it has to be measured."""
    cache = None if folder is None or scored.fingerprint is None else ScoreCache(folder, scored.fingerprint)
    words = tokenizer_fingerprint(scored.tokenizer) if cache else ""
    scores: list[TaskScore] = []
    kept: list[str] = []
    notes: tuple[str, ...] = ()
    wrapped = None
    for one in prepared:
        key = question_key(harness.version(), words, one.name, one.fingerprint, limit, scored.dtype)
        score, damage = cache.load(one.name, key) if cache else (None, ())
        notes += damage
        if score is None:
            wrapped = wrapped or harness.wrap(scored.load(), scored.tokenizer, _BATCH_SIZE)
            score = _measure(wrapped, one, limit, progress)
            if cache:
                cache.save(key, score)
        else:
            kept.append(one.name)
        # The location of the examples is not part of the key, and may differ from that of a cached score.
        scores.append(score.model_copy(update={"source": one.source, "notes": (*one.notes, *score.notes)}))
    if kept:
        notes += (f"kept from an earlier run (--no-cache measures again): {', '.join(kept)}.",)
    return tuple(scores), notes


def _measure(wrapped: Any, one: _Prepared, limit: int | None, progress: ProgressCallback) -> TaskScore:
    measured = harness.run(wrapped, one.task, limit, _reporter(one, progress))
    for sample in measured.samples:
        for answer in sample["filtered_resps"]:
            if isinstance(answer, tuple) and math.isnan(answer[0]):
                raise NumericalError(
                    f"the model computes NaN on example {sample['doc_id']} of {one.name}: evaluate it in float32 "
                    "(--dtype float32), or compress less."
                )
    correct = measured.marks("acc")
    notes = []
    if correct is None:
        notes.append(f"{one.name} gives parts of a point: its examples are not right or wrong.")
    if measured.full:
        notes.append(
            f"{one.name}: some prompts fill the {wrapped.max_length} tokens the model can read; the start of longer "
            "ones is cut off."
        )
    return TaskScore(
        task=one.name,
        version=measured.version,
        split="test" if one.task.has_test_docs() else "validation",
        source=one.source,
        examples=len(measured.samples),
        accuracy=measured.means["acc"],
        accuracy_error=measured.error("acc"),
        normalized_accuracy=measured.means.get("acc_norm"),
        normalized_accuracy_error=measured.error("acc_norm"),
        correct=correct,
        correct_normalized=measured.marks("acc_norm"),
        data_fingerprint=one.fingerprint,
        prompt_fingerprint=fingerprint_examples([sample["arguments"] for sample in measured.samples]),
        notes=tuple(notes),
    )


def _reporter(one: _Prepared, progress: ProgressCallback) -> Callable[[int, int], None]:
    return lambda done, total: progress(Progress(f"task {one.name}", done, total, "answers"))
