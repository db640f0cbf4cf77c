"""Zero-shot tasks from local files: the harness's task definitions with local examples instead of the hub's.

A folder of task data holds, for each task, either ``TASK.jsonl`` (or ``.jsonl.gz``) with the fields of the original
data set, or a re-published file under its path (see :data:`LOCAL_TASKS`).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from basis_sharing.calibration.records import read_records
from basis_sharing.calibration.text_files import read_plain
from basis_sharing.errors import CorpusError
from basis_sharing.evaluation import task_records as records
from basis_sharing.evaluation.task_records import Example, Record

_UNCONDITIONAL = 1_000_000  # smallest doc_id of requests that repeat choices without their question
_SPLITS = ("training_split", "validation_split", "test_split")


@dataclass(frozen=True)
class TaskFile:
    """A file that holds the examples of a task.

    Attributes:
        path: Its path in the folder of task data.
        read: Yields its records.
        convert: Converts a record to an example.
        overrides: Settings of the harness's task that these examples replace.
    """

    path: str
    read: Callable[[Path], Iterator[Record]]
    convert: Callable[[Record], Example]
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalTask:
    """A task whose examples can be read from a folder.

    Attributes:
        definition: Path of the harness's definition in its folder of tasks.
        split: The split that the harness scores, ``"test"`` or ``"validation"``.
        examples: Number of examples of this split.
        convert: Checks and converts a record with the original fields.
        published: The re-published file with the same examples.
    """

    definition: str
    split: str
    examples: int
    convert: Callable[[Record], Example]
    published: TaskFile


@dataclass(frozen=True)
class WrittenTask:
    """The examples of a task, ready for the harness.

    Attributes:
        source: The file that they were read from.
        notes: Notes for the reader.
    """

    source: Path
    notes: tuple[str, ...]


def _lines(path: Path) -> Iterator[Record]:
    for where, fields in read_records(path):
        yield Record(where, fields)


def _requests(path: Path) -> Iterator[Record]:
    """Yield each example once from a file that has one line per choice."""
    seen = set()
    for line in _lines(path):
        number = line.fields.get("doc_id")
        if not isinstance(number, int):
            raise line.wrong("doc_id", "is missing or not a number")
        if number < _UNCONDITIONAL and number not in seen:
            seen.add(number)
            yield line.inner("doc")


def _with_labels(path: Path) -> Iterator[Record]:
    """Yield the records of a file with their labels, which are on the same lines of another file."""
    file = path.with_name(f"{path.stem}-labels.lst")
    if not file.is_file():
        raise CorpusError(f"{path} needs its labels in {file.name} beside it, and there is no such file: add it.")
    labels = read_plain(file).split()
    unlabelled = list(_lines(path))
    if len(unlabelled) != len(labels):
        raise CorpusError(
            f"{path} has {len(unlabelled)} records and {file} has {len(labels)} labels: fetch both again."
        )
    for record, label in zip(unlabelled, labels, strict=True):
        yield Record(record.where, {**record.fields, "label": label})


def _olmo(name: str, convert: Callable[[Record], Example], **overrides: Any) -> TaskFile:
    return TaskFile(f"olmo/{name}.requests.jsonl.gz", _requests, convert, overrides)


_arc = partial(records.science, question="question")
_published_arc = partial(records.published_science, question="question")
_book = partial(records.science, question="question_stem")
_published_book = partial(records.published_science, question="question_stem")

LOCAL_TASKS: dict[str, LocalTask] = {
    "openbookqa": LocalTask(
        "openbookqa/openbookqa.yaml", "test", 500, _book, _olmo("openbookqa.test_rc_5shot", _published_book)
    ),
    "arc_easy": LocalTask("arc/arc_easy.yaml", "test", 2376, _arc, _olmo("arc_easy.test_rc_5shot", _published_arc)),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        "validation",
        1267,
        records.winogrande,
        _olmo("winogrande.rc_0shot", records.winogrande),
    ),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml",
        "validation",
        10042,
        records.hellaswag,
        _olmo("hellaswag.rc_5shot", records.published_hellaswag, process_docs=None),
    ),
    "arc_challenge": LocalTask(
        "arc/arc_challenge.yaml", "test", 1172, _arc, _olmo("arc_challenge.test_rc_5shot", _published_arc)
    ),
    "piqa": LocalTask(
        "piqa/piqa.yaml", "validation", 1838, records.piqa, TaskFile("piqa/valid.jsonl", _with_labels, records.piqa)
    ),
    "mathqa": LocalTask(
        "mathqa/mathqa.yaml",
        "test",
        2985,
        records.mathqa,
        TaskFile("mathqa/test.json.gz", _lines, records.published_mathqa),
    ),
    "boolq": LocalTask(
        "super_glue/boolq/default.yaml",
        "validation",
        3270,
        records.boolq,
        _olmo("boolq.rc_0shot", records.published_boolq),
    ),
    "lambada_openai": LocalTask(
        "lambada/lambada_openai.yaml",
        "test",
        5153,
        records.lambada,
        TaskFile("llm-foundry/lambada_openai.jsonl.gz", _lines, records.published_lambada),
    ),
}
"""The tasks that can be read from a folder: the seven of the paper, in its order, and two more."""


def write_task(name: str, folder: Path, output: Path, definitions: Path) -> WrittenTask:
    """Write a task of :data:`LOCAL_TASKS` for the harness: its examples, and a YAML file based on its definition.

    Args:
        name: The task.
        folder: The folder of task data.
        output: Folder for ``NAME.jsonl`` and ``NAME.yaml``; the harness's ``include_path``.
        definitions: The harness's folder of tasks.

    Returns:
        The file the examples were read from, and notes.

    Raises:
        CorpusError: The folder has no file for this task, or a record lacks a field or a label.
    """
    task = LOCAL_TASKS[name]
    form = _find(name, folder)
    source = folder / form.path
    examples = [form.convert(record) for record in form.read(source)]
    if not examples:
        raise CorpusError(f"{source} holds no examples: fetch it again.")
    data = output / f"{name}.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    settings = {
        "include": str(definitions / task.definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        # The cache is beside the examples: the next run has another temporary folder and cannot use it.
        "dataset_kwargs": {"data_files": {task.split: str(data)}, "cache_dir": str(output / "arrow")},
        **dict.fromkeys(_SPLITS),
        f"{task.split}_split": task.split,
        **form.overrides,
    }
    (output / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    notes: tuple[str, ...] = ()
    if len(examples) != task.examples:
        notes = (
            f"{name}: {source.name} has {len(examples):,} examples, the whole {task.split} split has "
            f"{task.examples:,}: the score is that of a sample, do not compare it with published ones.",
        )
    return WrittenTask(source, notes)


def fingerprint_examples(examples: list[Any]) -> str:
    """Return a hash of JSON-serializable examples, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for example in examples:
        digest.update(json.dumps(example, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _find(name: str, folder: Path) -> TaskFile:
    if not folder.is_dir():
        raise CorpusError(f"the folder of task data {folder} does not exist: check --task-data.")
    task = LOCAL_TASKS[name]
    original = [TaskFile(f"{name}{suffix}", _lines, task.convert) for suffix in (".jsonl", ".jsonl.gz")]
    for form in (*original, task.published):
        if (folder / form.path).is_file():
            return form
    raise CorpusError(
        f"{folder} has no examples of {name}: put {name}.jsonl with the fields of the original data set there, or "
        f"{task.published.path}."
    )
