"""What a run will need, told before: the numbers bound what it really takes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import basis_sharing
from basis_sharing.cli.main import app
from basis_sharing.errors import MemoryBudgetError
from basis_sharing.models.source import read_in_place, resolve
from basis_sharing.results.estimate import Estimate
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Stage
from basis_sharing.verbs.compress import compress
from basis_sharing.verbs.estimate import estimate
from forks import fresh
from pico import PICO, TEXT, build, pico_tokenizer, save_pico, save_with_texts, weight_bytes

SETTINGS: dict[str, Any] = {"ratio": 0.3, "windows": 6, "length": 64}
WIDE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "num_hidden_layers": 3,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
}
PEAK = """
import json, sys, threading, time
from contextlib import suppress
from pathlib import Path
from basis_sharing.run.machine import taken_memory
from basis_sharing.verbs.compress import compress

model, output, settings = sys.argv[1:]
memory, disk, running = 0, 0, True

def watch():
    global memory
    while running:
        memory = max(memory, taken_memory())
        time.sleep(0.002)

def sample(_):
    global disk
    found = 0
    for path in Path(output + ".work").rglob("*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    disk = max(disk, found)

thread = threading.Thread(target=watch)
thread.start()
compress(model, output=output, max_memory="3GiB", progress=sample, **json.loads(settings))
running = False
thread.join()
print(memory, disk)
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_texts(tmp_path_factory.mktemp("estimate"))


def needs(space: Path, **settings: Any) -> Estimate:
    return estimate(str(space / "model"), calibration=str(space / "text.txt"), **{**SETTINGS, **settings})


def test_every_stage_of_a_recipe_is_named(space: Path) -> None:
    def stages(**settings: Any) -> list[str]:
        names = [stage.name for stage in needs(space, **settings).stages]
        assert names[-1] == "checking the result" or "evaluate" in settings
        assert "running the original" in names[:2]
        return [name for name in names if name not in ("running the original", "checking the result")]

    assert stages() == ["calibration, with gradients", "planning", "factorization", "ordering"]
    assert stages(windows=16) == ["calibration, with gradients", "planning", "factorization", "refit", "ordering"]
    assert stages(gradients=False) == ["calibration", "sensitivities", "planning", "factorization", "ordering"]
    assert stages(method="basis-sharing", ratio=0.4) == ["calibration", "factorization", "refit"]
    assert stages(method="svd", evaluate=("python-docs:heldout",)) == [
        "evaluating the original",
        "factorization",
        "evaluating the result",
    ]


def test_more_text_takes_longer_and_more_disk(space: Path) -> None:
    short, long = needs(space, windows=2), needs(space, windows=6)
    assert (short.windows, long.windows, long.length) == (2, 6, 64)
    assert long.work_bytes > short.work_bytes
    assert long.output_bytes == sum(path.stat().st_size for path in (space / "model").glob("*.safetensors"))


def test_nothing_is_written_and_no_weight_is_read(space: Path, tmp_path: Path) -> None:
    before = sorted(space.iterdir())
    output = tmp_path / "out"
    arguments = ["compress", str(space / "model"), "-o", str(output), "--ratio", "0.3", "--windows", "6"]
    arguments += ["--length", "64", "--calibration", str(space / "text.txt"), "--dry-run"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "6 calibration windows of 64 tokens" in shown.output
    assert "of 3GiB" not in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--max-memory", "3GiB"]).stdout)
    assert found["memory"] == 3 * 2**30
    assert sorted(space.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_a_budget_that_cannot_work_is_refused_with_one_that_can(space: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = {**SETTINGS, "calibration": str(space / "text.txt"), "output": output}
    with pytest.raises(MemoryBudgetError, match=r"the smallest budget that can work is --max-memory \d+MiB") as error:
        compress(str(space / "model"), max_memory="40MiB", **settings)
    assert not output.exists()
    arguments = ["compress", str(space / "model"), "-o", str(output), "--ratio", "0.3", "--max-memory", "40MiB"]
    refused = CliRunner().invoke(app, [*arguments, "--calibration", str(space / "text.txt"), "--dry-run"])
    assert isinstance(refused.exception, MemoryBudgetError)
    least = str(error.value).partition("--max-memory ")[2].split()[0]
    # What the process has taken since then is the test's own.
    compress(str(space / "model"), max_memory=f"{int(least.removesuffix('MiB')) + 64}MiB", **settings)
    compress(str(space / "model"), max_memory="100GiB", **{**settings, "output": tmp_path / "rich"})
    assert weight_bytes(output) == weight_bytes(tmp_path / "rich")


def test_weights_of_another_dtype_or_packed_ones_are_memory_of_their_own(tmp_path: Path) -> None:
    folder = resolve(save_pico("llama", tmp_path / "model", dtype=torch.bfloat16))
    assert read_in_place(folder, None)
    assert read_in_place(folder, torch.bfloat16)
    assert not read_in_place(folder, torch.float32)


def test_a_model_in_memory_is_estimated_where_it_is(space: Path) -> None:
    found = estimate(PICO["gpt2"](), tokenizer=pico_tokenizer(), calibration=str(space / "text.txt"), **SETTINGS)
    assert found.least_memory < found.memory
    assert found.processes == 1


# Without the search for bases shared across depth, which takes most of the time and no more memory or disk space.
METHODS = [{"method": "auto", "across_depth": False}, {"method": "basis-sharing"}]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_memory_and_the_work_folder_stay_below_what_was_told(method: dict[str, Any], tmp_path: Path) -> None:
    text = wide_model(tmp_path) / "text.txt"
    settings: dict[str, Any] = {"ratio": 0.3, "calibration": str(text), "windows": 8, "length": 256, **method}
    told = estimate(str(tmp_path / "model"), **settings)
    arguments = (tmp_path / "model", tmp_path / "out", json.dumps(settings))
    found = fresh(PEAK, *arguments, cwd=tmp_path, path=[Path(basis_sharing.__file__).parents[1]]).wait()
    assert found.returncode == 0, found.stderr
    memory, disk = map(int, found.stdout.splitlines()[-1].split())
    # Of this process only the tests know what it has; the other one has just the libraries.
    libraries = 500 * 2**20
    assert memory < libraries + told.least_memory - told.resident
    assert max(stage.memory for stage in told.stages) > 20 * 2**20
    assert disk <= told.work_bytes <= 2.2 * disk


def wide_model(root: Path) -> Path:
    build("llama", **WIDE).save_pretrained(root / "model")
    pico_tokenizer().save_pretrained(root / "model")
    (root / "text.txt").write_text(TEXT)
    return root


def test_seconds_are_within_a_factor_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told and taken for blocks of SmolLM2-135M's widths, whose weights matter to neither."""
    build("llama", **SMOLLM2).save_pretrained(tmp_path / "model")
    pico_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    taken: dict[str, float] = {}

    def timed(stages: Sequence[Stage], run: Run) -> None:
        for stage in stages:
            start = time.process_time()
            stage.run(run)
            taken[type(stage).__name__] = time.process_time() - start

    # Processor time of the one thread that tests have, on both sides: a machine may be shared with others.
    monkeypatch.setattr("basis_sharing.run.stages.time", SimpleNamespace(perf_counter=time.process_time))
    monkeypatch.setattr("basis_sharing.run.run.carry_out", timed)
    settings: dict[str, Any] = {
        "ratio": 0.3,
        "calibration": str(tmp_path / "text.txt"),
        "windows": 4,
        "length": 256,
        "across_depth": False,
        "roles": ("o", "gate"),
    }
    windows = ("running the original", "ordering", "checking the result")  # too short to be timed
    estimated = estimate(str(tmp_path / "model"), **settings).stages
    told = {stage.name: stage.seconds for stage in estimated if stage.name not in windows}
    compress(str(tmp_path / "model"), **settings)
    found = {
        "calibration, with gradients": taken["Collect"],
        "planning": taken["MakePlan"],
        "factorization": taken["Execute"],
    }
    assert found.keys() == told.keys()
    for name, seconds in found.items():
        assert seconds / 2 < told[name] < 2 * seconds, f"{name}: told {told[name]:.1f} s, took {seconds:.1f} s"
    assert sum(found.values()) / 2 < sum(told.values()) < 2 * sum(found.values())
