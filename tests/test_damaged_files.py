"""Plans, recipes, results and compressed folders changed at random: one sentence, or something that holds together.

``DAMAGE_ROUNDS=500 pytest tests/test_damaged_files.py`` takes more rounds than the suite.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from basis_sharing.checkpoint.folder import check_folder, entries_in
from basis_sharing.errors import BasisSharingError
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.rollout import Rollout
from basis_sharing.results.study import StudyResult
from damage import change_bytes, change_value
from pico import PICO
from samples import rollout

ROUNDS, FIRST = int(os.environ.get("DAMAGE_ROUNDS", "40")), int(os.environ.get("DAMAGE_FIRST", "0"))
FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
RECIPE = {"ratio": 0.3, "method": "svd-llm", "calibration": "text.txt", "windows": 8, "roles": ["q", "k"], "seed": 1}


@cache
def decoder() -> Decoder:
    return describe(PICO["llama"]())


def checked_plan(path: Path) -> None:
    plan = Plan.read(path)
    plan.check(decoder())
    assert plan.bytes(decoder(), 4) > 0
    plan.write(path)
    assert Plan.read(path) == plan


def checked_recipe(path: Path) -> None:
    recipe = Recipe.create(**Recipe.settings_in(path))
    assert Recipe.create(**recipe.model_dump(exclude_unset=True)) == recipe


def checked_result(kind: Any) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        result = kind.read(path)
        result.write(path)
        assert kind.read(path) == result

    return check


def sources(folder: Path) -> dict[str, tuple[Path, Callable[[Path], None]]]:
    """Return the files to change, and what reads them."""
    Plan.read(FIXTURES / "plan.json").write(folder / "plan-2.json")
    rollout().write(folder / "rollout-now.json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    CompressionResult.read(FIXTURES / "recovered.json").write(folder / "compression.json")
    return {
        "plan of version 1": (FIXTURES / "plan.json", checked_plan),
        "plan": (folder / "plan-2.json", checked_plan),
        "recipe": (folder / "recipe.yaml", checked_recipe),
        "benchmark": (FIXTURES / "benchmark.json", checked_result(BenchmarkResult)),
        "comparison": (FIXTURES / "comparison.json", checked_result(Comparison)),
        "compression of 0.1.0": (FIXTURES / "recovered.json", checked_result(CompressionResult)),
        "compression": (folder / "compression.json", checked_result(CompressionResult)),
        "rollout": (folder / "rollout-now.json", checked_result(Rollout)),
        "study": (FIXTURES / "study.json", checked_result(StudyResult)),
    }


NAMES = (
    "plan of version 1",
    "plan",
    "recipe",
    "benchmark",
    "comparison",
    "compression of 0.1.0",
    "compression",
    "rollout",
    "study",
)


def damaged(source: Path, chance: random.Random) -> bytes:
    raw = source.read_bytes()
    if chance.random() < 0.3:
        return change_bytes(raw, chance, len(raw))
    content = yaml.safe_load(raw) if source.suffix == ".yaml" else json.loads(raw)
    for _ in range(chance.choice([1, 1, 2, 4])):
        content = change_value(content, chance)
    return (yaml.safe_dump(content) if source.suffix == ".yaml" else json.dumps(content)).encode()


def outcome(read: Callable[[Path], None], path: Path) -> str | None:
    """Return the sentence with which a file is refused; None if it is read. Every other exception passes through."""
    try:
        read(path)
    except BasisSharingError as error:
        return str(error)
    return None


def faults(read: Callable[[Path], None], path: Path, change: Callable[[random.Random], bytes], name: str) -> list[str]:
    """Return what was wrong in any round, and make sure that some files are refused."""
    found, refused = [], 0
    for seed in range(FIRST, FIRST + ROUNDS):
        path.write_bytes(change(random.Random(f"{name} {seed}")))
        try:
            sentence = outcome(read, path)
        except Exception as error:
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        refused += sentence is not None
        if sentence is not None and ("\n" in sentence or not sentence.endswith((".", "?"))):
            found.append(f"seed {seed}: {sentence!r}")
    assert refused > ROUNDS / 10
    return found


@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    source, read = sources(tmp_path)[name]
    changed = tmp_path / f"changed{source.suffix}"
    assert faults(read, changed, lambda chance: damaged(source, chance), name) == []


@pytest.mark.parametrize("name", ["auto", "basis-sharing"])
def test_changed_configurations_of_compressed_folders(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(FIXTURES / name, folder)
    original = (folder / "config.json").read_text()

    def change(chance: random.Random) -> bytes:
        config = json.loads(original)
        config["quantization_config"] = change_value(config["quantization_config"], chance)
        return json.dumps(config).encode()

    def read(path: Path) -> None:
        check_folder(path.parent)
        assert all(entry.on_disk() for entry in entries_in(path.parent))

    assert faults(read, folder / "config.json", change, name) == []
