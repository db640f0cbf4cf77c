"""``basis-sharing evaluate --tasks`` as a person runs it, mistakes included."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from basis_sharing.evaluation import harness
from basis_sharing.results.comparison import Comparison
from workspace import Workspace

EXAMPLE = {"goal": "Open a jar.", "sol1": "Turn its lid.", "sol2": "Sing to it.", "label": 0}


@pytest.fixture
def space(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    space = Workspace(tmp_path, capsys)
    (space.root / "data").mkdir()
    lines = [json.dumps({**EXAMPLE, "label": label}) for label in (0, 1, 0)]
    (space.root / "data" / "piqa.jsonl").write_text("\n".join(lines))
    return space


def test_table_then_json_from_the_cache(space: Workspace) -> None:
    arguments = ("evaluate", space.model, "--tasks", "piqa", "--task-data", space.root / "data")
    before = space.snapshot()
    assert space.run(*arguments) == 0
    shown = space.capsys.readouterr().out
    assert "Zero-shot accuracy of" in shown
    assert "piqa" in shown
    assert "1,838" in shown
    assert "bits/byte" not in shown
    assert space.run(*arguments, "--json") == 0
    found = json.loads(space.capsys.readouterr().out)
    assert (found["kind"], found["perplexities"]) == ("evaluation", [])
    found = found["tasks"]
    assert found["scores"][0]["examples"] == 3
    assert sorted(found["scores"][0]["correct"]) in (["0", "0", "1"], ["0", "1", "1"])
    assert found["notes"] == ["kept from an earlier run (--no-cache measures again): piqa."]
    assert space.run(*arguments, "--json", "--no-cache") == 0
    assert json.loads(space.capsys.readouterr().out)["tasks"]["notes"] == []
    assert space.snapshot() == before


def test_tasks_and_text_together(space: Workspace) -> None:
    arguments = ("evaluate", space.model, "--tasks", "piqa", "--task-data", space.root / "data")
    arguments += ("--text", space.text, "--length", 64)
    assert space.run(*arguments) == 0
    shown = space.capsys.readouterr().out
    assert "bits/byte" in shown
    assert "Zero-shot accuracy of" in shown
    assert space.run(*arguments, "--json") == 0
    found = json.loads(space.capsys.readouterr().out)
    assert found["perplexities"][0]["perplexity"] > 1
    assert found["tasks"]["scores"][0]["task"] == "piqa"


def test_mistakes(space: Workspace) -> None:
    data = space.root / "data"

    def refused(*arguments: object) -> str:
        return space.refused("evaluate", space.model, *arguments)

    assert refused("--tasks", "pika", "--task-data", data) == (
        "error: the examples of 'pika' cannot be read from a folder: did you mean 'piqa'? The tasks that can: "
        "openbookqa, arc_easy, winogrande, hellaswag, arc_challenge, piqa, mathqa, boolq, lambada_openai; without "
        "--task-data the harness fetches those of any task."
    )
    assert refused("--tasks", "piqa", "--task-data", space.root / "none") == (
        f"error: the folder of task data {space.root / 'none'} does not exist: check --task-data."
    )
    assert "has no examples of boolq: put boolq.jsonl" in refused("--tasks", "piqa,boolq", "--task-data", data)
    assert refused("--tasks", "piqa", "--limit", 0) == "error: --limit 0 is too small: at least 1 is needed."
    assert "no task is named" in refused("--tasks", ",")
    assert "name some with --tasks" in refused("--limit", 3)
    assert "name one with --text" in refused("--tasks", "piqa", "--length", 64)
    assert "does not exist" in space.refused("evaluate", space.root / "nothing", "--tasks", "piqa", "--task-data", data)

    del (bad := dict(EXAMPLE))["label"]
    (data / "piqa.jsonl").write_text(f"{json.dumps(EXAMPLE)}\n{json.dumps(bad)}\n")
    assert refused("--tasks", "piqa", "--task-data", data) == (
        f"error: field 'label' of line 2 of {data / 'piqa.jsonl'} is missing: correct or remove this record."
    )


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(space.text))
    arguments = ("evaluate", space.model, "--tasks", "piqa", "--task-data", space.root / "data")
    assert space.refused(*arguments) == (
        f"error: scores cannot be kept in {space.text / 'basis-sharing' / 'tasks'}: pass --no-cache, or name another "
        "cache folder in XDG_CACHE_HOME."
    )
    assert space.run(*arguments, "--no-cache") == 0


@pytest.fixture
def few_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the harness know two folders of its tasks: it reads thousands of files to know all."""
    for name in ("arc", "hellaswag"):
        shutil.copytree(harness.definitions() / name, tmp_path / "tasks" / name)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "tasks" / "manager.py"))


@pytest.mark.usefixtures("few_definitions")
def test_without_network_the_way_out_is_named(space: Workspace) -> None:
    message = space.refused("evaluate", space.model, "--tasks", "arc_easy")
    assert message.startswith("error: the examples of arc_easy cannot be fetched from the Hugging Face Hub (")
    assert message.endswith("check the network, or give a folder that holds them with --task-data.")


@pytest.mark.usefixtures("few_definitions")
def test_unknown_to_the_harness_too(space: Workspace) -> None:
    message = space.refused("evaluate", space.model, "--tasks", "helaswag")
    assert message.startswith("error: unknown task 'helaswag': did you mean 'hellaswag'? The harness lists ")


def test_without_the_harness(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    message = space.refused("evaluate", space.model, "--tasks", "piqa", "--task-data", space.root / "data")
    assert message.startswith("error: zero-shot tasks need lm-evaluation-harness (")
    assert message.endswith("): pip install 'basis-sharing[eval]'.")


def test_two_models_task_by_task(space: Workspace) -> None:
    """The same model twice: nothing differs, and the second one's scores come from the cache of the first."""
    data = ("--tasks", "piqa", "--task-data", space.root / "data")
    text = ("--text", space.text, "--length", 64, "--new-tokens", 2)
    file = space.root / "ab.json"
    assert space.run("compare", space.model, space.model, *data, *text, "-o", file) == 0
    shown = space.capsys.readouterr().out
    assert "Accuracy on tasks" in shown
    (task,) = Comparison.read(file).tasks
    assert task.task == "piqa"
    assert task.first == task.second
    assert task.paired is not None
    assert (task.paired.examples, task.paired.only_first, task.paired.only_second) == (3, 0, 0)
    told = space.refused("compare", space.model, "--baseline", file, *data)
    assert told == "error: --tasks has no meaning with --baseline, which says what is measured: leave one out."
    assert "name some with --tasks" in space.refused("compare", space.model, space.model, "--limit", 3)
