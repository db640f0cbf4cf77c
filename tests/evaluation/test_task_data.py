"""Examples of tasks from files: what is read, and which sentence a bad file gets."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from basis_sharing.errors import CorpusError
from basis_sharing.evaluation import harness
from basis_sharing.evaluation.task_data import LOCAL_TASKS, fingerprint_examples, write_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "zeroshot"
ARC = {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
ORIGINAL: dict[str, dict[str, Any]] = {
    "openbookqa": {"question_stem": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "winogrande": {"sentence": "Ann told Bob that _ won.", "option1": "Ann", "option2": "Bob", "answer": "1"},
    "hellaswag": {"activity_label": "Walk", "ctx_a": "A.", "ctx_b": "he", "endings": ["goes.", "is."], "label": "1"},
    "piqa": {"goal": "g", "sol1": "s", "sol2": "t", "label": 1},
    "mathqa": {"Problem": "1 + 1 ?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "b"},
    "boolq": {"passage": "P.", "question": "is it", "label": 1},
    "lambada_openai": {"text": "one two three"},
}
PROMPTS = {
    "openbookqa": ("Q", ["a", "b"], 0),
    "arc_easy": ("Question: Q?\nAnswer:", ["a", "b"], 1),
    "arc_challenge": ("Question: Q?\nAnswer:", ["a", "b"], 1),
    "winogrande": (0, ["Ann told Bob that Ann", "Ann told Bob that Bob"], "won."),
    "hellaswag": ("Walk: A. He", ["goes.", "is."], 1),
    "piqa": ("Question: g\nAnswer:", ["s", "t"], 1),
    "mathqa": ("Question: 1 + 1 ?\nAnswer:", ["1", "2", "3", "4", "5"], 1),
    "boolq": ("P.\nQuestion: is it?\nAnswer:", ["no", "yes"], 1),
    "lambada_openai": ("one two", None, " three"),
}
PUBLISHED: dict[str, Any] = {
    "openbookqa": {"query": "Question: Q\nAnswer:", "choices": ["a", "b"], "gold": 0},
    "arc_easy": {"query": "Question: Q?\nAnswer:", "choices": ["a", "b"], "gold": 1},
    "arc_challenge": {"query": "Question: Q?\nAnswer:", "choices": ["a", "b"], "gold": 1},
    "winogrande": ORIGINAL["winogrande"],
    "hellaswag": {"query": "Walk: A. He", "choices": ["goes.", "is."], "gold": 1},
    "mathqa": {"instruction": "1 + 1 ? The options: A ) 1 , B ) 2 , C ) 3 , D ) 4 , E ) 5", "answer": "B"},
    "boolq": {"query": "P.\nQuestion: is it?\nAnswer:", "choices": ["yes", "no"], "gold": 0},
    "lambada_openai": {"context": "one two", "continuation": "three"},
}


def save(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, records))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def publish(folder: Path, name: str, *records: dict[str, Any]) -> Path:
    """Save records where they are re-published; those of OLMo with one line per choice, and some without question."""
    path = folder / LOCAL_TASKS[name].published.path
    if not path.name.endswith(".requests.jsonl.gz"):
        return save(path, list(records))
    lines = [{"doc_id": i, "idx": idx, "doc": doc} for i, doc in enumerate(records) for idx in (0, 1)]
    return save(path, [*lines, *({**line, "doc_id": 1_000_000 + line["doc_id"]} for line in lines)])


def loaded(name: str, folder: Path, output: Path) -> Any:
    output.mkdir()
    with harness.silenced():
        write_task(name, folder, output, harness.definitions())
        (task,) = harness.load_tasks([name], [output])
    return task


def prompts(task: Any, example: dict[str, Any]) -> tuple[Any, Any, Any]:
    choices = task.doc_to_choice(example) if task.config.doc_to_choice is not None else None
    return task.doc_to_text(example), choices, task.doc_to_target(example)


@pytest.mark.parametrize("name", LOCAL_TASKS)
def test_original_fields_become_the_prompts_of_the_harness(name: str, tmp_path: Path) -> None:
    save(tmp_path / f"{name}.jsonl", [ORIGINAL[name]])
    task = loaded(name, tmp_path, tmp_path / "out")
    (example,) = task.eval_docs
    assert prompts(task, example) == PROMPTS[name]
    settings = yaml.safe_load((tmp_path / "out" / f"{name}.yaml").read_text())
    assert Path(settings["include"]).is_file()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_the_same(name: str, tmp_path: Path) -> None:
    publish(tmp_path, name, PUBLISHED[name], PUBLISHED[name])
    task = loaded(name, tmp_path, tmp_path / "out")
    examples = list(task.eval_docs)
    assert len(examples) == 2
    assert [prompts(task, example) for example in examples] == [PROMPTS[name]] * 2


def test_piqa_has_its_labels_in_another_file(tmp_path: Path) -> None:
    record = {key: value for key, value in ORIGINAL["piqa"].items() if key != "label"}
    path = publish(tmp_path, "piqa", record, record)
    with pytest.raises(CorpusError, match=r"needs its labels in valid-labels\.lst beside it"):
        loaded("piqa", tmp_path, tmp_path / "none")
    path.with_name("valid-labels.lst").write_text("1\n")
    with pytest.raises(CorpusError, match=r"has 2 records and .* has 1 labels"):
        loaded("piqa", tmp_path, tmp_path / "few")
    path.with_name("valid-labels.lst").write_text("1\n0\n")
    task = loaded("piqa", tmp_path, tmp_path / "out")
    assert [task.doc_to_target(example) for example in task.eval_docs] == [1, 0]


def test_a_sample_is_called_one(tmp_path: Path) -> None:
    save(tmp_path / "piqa.jsonl", [ORIGINAL["piqa"]])
    (tmp_path / "out").mkdir()
    written = write_task("piqa", tmp_path, tmp_path / "out", tmp_path)
    assert written.source == tmp_path / "piqa.jsonl"
    assert written.notes == (
        "piqa: piqa.jsonl has 1 examples, the whole validation split has 1,838: the score is that of a sample, do not "
        "compare it with published ones.",
    )


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.pop(name)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("arc_easy", without("answerKey"), "field 'answerKey' of line 2 of {file} is missing"),
        (
            "arc_easy",
            lambda r: r.update(answerKey="3"),
            "field 'answerKey' of line 2 of {file} is '3', but one of 1, 2",
        ),
        ("arc_easy", lambda r: r.update(choices="ab"), "field 'choices' of line 2 of {file} is not an object"),
        (
            "openbookqa",
            lambda r: r.update(choices={"text": ["a", "b", "c"], "label": ["A", "B"]}),
            "field 'choices' of line 2 of {file} has 3 texts and 2 labels",
        ),
        (
            "openbookqa",
            lambda r: r.update(choices={"text": ["a"], "label": ["A"]}),
            "field 'text' of field 'choices' of line 2 of {file} is not a list of two or more strings",
        ),
        ("winogrande", lambda r: r.update(sentence="No gap."), "field 'sentence' of line 2 of {file} has no gap _"),
        ("winogrande", lambda r: r.update(answer=""), "field 'answer' of line 2 of {file} is '', but one of 1, 2"),
        ("hellaswag", lambda r: r.update(label=""), "is '', but a label from 0 to 1 is needed"),
        ("piqa", lambda r: r.update(label=-1), "field 'label' of line 2 of {file} is -1, but a label from 0 to 1"),
        ("piqa", lambda r: r.update(goal=3), "field 'goal' of line 2 of {file} is 3 and not a string"),
        ("mathqa", lambda r: r.update(correct="f"), "field 'correct' of line 2 of {file} is 'f'"),
        ("boolq", without("label"), "field 'label' of line 2 of {file} is missing: correct or remove this record"),
        ("lambada_openai", lambda r: r.update(text="one"), "field 'text' of line 2 of {file} has only one word"),
    ],
)
def test_a_bad_record_is_named(
    name: str, change: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    bad = json.loads(json.dumps(ORIGINAL[name]))
    change(bad)
    file = save(tmp_path / f"{name}.jsonl", [ORIGINAL[name], bad])
    with pytest.raises(CorpusError) as error:
        write_task(name, tmp_path, tmp_path, tmp_path)
    assert sentence.format(file=file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("arc_easy", lambda r: r.update(query="Q?"), "does not start with 'Question: ' and end with '\\nAnswer:'"),
        ("arc_easy", without("gold"), "field 'gold' of field 'doc' of line 1 of {file} is missing"),
        ("boolq", lambda r: r.update(choices=["true", "false"]), "are not yes and no"),
        ("boolq", lambda r: r.update(query="P."), "does not end in a question and 'Answer:'"),
        ("mathqa", lambda r: r.update(instruction="1 + 1 ?"), "does not say 'The options: '"),
        ("lambada_openai", lambda r: r.update(continuation="two words"), "is 'two words' and not one word"),
    ],
)
def test_a_bad_published_record_is_named(
    name: str, change: Callable[[dict[str, Any]], None], sentence: str, tmp_path: Path
) -> None:
    bad = dict(PUBLISHED[name])
    change(bad)
    file = publish(tmp_path, name, bad)
    with pytest.raises(CorpusError) as error:
        write_task(name, tmp_path, tmp_path, tmp_path)
    assert sentence.format(file=file) in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none does not exist: check --task-data"):
        write_task("piqa", tmp_path / "none", tmp_path, tmp_path)
    with pytest.raises(CorpusError, match=r"has no examples of piqa: put piqa\.jsonl .* or piqa/valid\.jsonl"):
        write_task("piqa", tmp_path, tmp_path, tmp_path)
    save(tmp_path / "olmo" / "boolq.rc_0shot.requests.jsonl.gz", [{"doc": {}}])
    with pytest.raises(CorpusError, match=r"field 'doc_id' of line 1 of .* is missing or not a number"):
        write_task("boolq", tmp_path, tmp_path, tmp_path)


def test_the_fingerprint_is_of_the_examples_and_their_order() -> None:
    assert fingerprint_examples([{"a": 1, "b": 2}]) == fingerprint_examples([{"b": 2, "a": 1}])
    assert len({fingerprint_examples(examples) for examples in ([1, 2], [2, 1], [12], [])}) == 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published files")
@pytest.mark.parametrize("name", LOCAL_TASKS)
def test_the_published_files_are_whole(name: str, tmp_path: Path) -> None:
    task = loaded(name, SHARED, tmp_path / "out")
    examples = list(task.eval_docs)
    assert len(examples) == (1000 if name == "hellaswag" else LOCAL_TASKS[name].examples)
    answers = [prompts(task, example) for example in examples[::10]]
    assert len({repr(answer) for answer in answers}) > 0.99 * len(answers)
    if name not in {"lambada_openai", "winogrande"}:
        assert all(len(choices) > target for _, choices, target in answers)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published files")
@pytest.mark.parametrize(("name", "key"), [("arc_easy", "ARC-Easy"), ("openbookqa", "OpenBookQA")])
def test_the_labels_are_the_official_ones(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_task(name, SHARED, tmp_path / "out", harness.definitions())
    lines = (SHARED / "answer_keys" / f"{key}-test.question-answers.jsonl").read_text().splitlines()
    official = [json.loads(line)["answerKey"] for line in lines]
    ours = [json.loads(line)["answerKey"] for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
    digits = dict(zip("1234", "ABCD", strict=True))
    assert ours == [digits.get(letter, letter) for letter in official]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published files")
def test_prompts_are_those_of_others_too(tmp_path: Path) -> None:
    """OLMo made the same zero-shot requests of WinoGrande: contexts and continuations agree in every example."""
    task = loaded("winogrande", SHARED, tmp_path / "out")
    path = SHARED / LOCAL_TASKS["winogrande"].published.path
    requests = [json.loads(line)["request"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    ours = []
    for example in task.eval_docs:
        ours += [
            {"context": choice, "continuation": f" {task.doc_to_target(example)}"}
            for choice in task.doc_to_choice(example)
        ]
    assert ours == [{key: request[key] for key in ("context", "continuation")} for request in requests]
