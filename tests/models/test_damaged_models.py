"""Damage at random, with seeds: a model folder is refused in a sentence, or what loads is what the files hold."""

import json
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from basis_sharing.errors import BasisSharingError
from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table
from basis_sharing.models.source import (
    fingerprint,
    load_model,
    load_skeleton,
    read_in_place,
    refuse_compressed,
    resolve,
    stored_bytes,
)
from damage import change_bytes, change_value, places
from pico import save_pico

ROUNDS, FIRST = int(os.environ.get("DAMAGE_ROUNDS", "5")), int(os.environ.get("DAMAGE_FIRST", "0"))
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = 2**20  # numbers of a configuration beyond it are refused by memory alone, after minutes


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = save_pico(request.param, tmp_path_factory.mktemp("whole") / request.param, max_shard_size="100KB")
    return folder, load_model(resolve(folder)).state_dict()


def in_json(name: str) -> Callable[[Path, random.Random], None]:
    def damage(folder: Path, chance: random.Random) -> None:
        file = folder / name
        if chance.random() < 0.3:
            file.write_bytes(change_bytes(file.read_bytes(), chance, 10**9))
        else:
            content = json.loads(file.read_text())
            for _ in range(chance.choice([1, 1, 2, 4])):
                content = change_value(content, chance)
            file.write_text(json.dumps(content))

    return damage


def in_header(folder: Path, chance: random.Random) -> None:
    file = chance.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    if chance.random() < 0.3:
        changed = change_bytes(content, chance, end)
    else:
        header = change_value(json.loads(content[8:end]), chance)
        text = json.dumps(header).encode()
        changed = len(text).to_bytes(8, "little") + text + content[end:]
    file.unlink()
    file.write_bytes(changed)


def in_files(folder: Path, chance: random.Random) -> None:
    files = sorted(folder.glob("*.safetensors"))
    first, second = chance.choice(files), chance.choice(files)
    action = chance.randrange(4)
    content = first.read_bytes()
    first.unlink()
    if action == 0:
        first.write_bytes(content[: chance.randrange(len(content))])
    elif action == 1:
        shutil.copy(second, first) if second != first else first.mkdir()
    elif action == 2:
        first.symlink_to(second.name)


def is_small(folder: Path) -> bool:
    """Return whether no number in a configuration is so large that building a model takes all memory."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (ValueError, OSError):
        return True

    def value_at(place: tuple[Any, ...]) -> Any:
        value = config
        for key in place:
            value = value[key]
        return value

    numbers = [value_at(place) for place in places(config)]
    return all(abs(number) < SMALL for number in numbers if type(number) in {int, float} and number == number)


def right(model: PreTrainedModel, folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether every weight is one that the files hold, and none of theirs is missing."""
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    prefix = f"{model.base_model_prefix}."
    for name, weight in model.state_dict().items():
        held = next((stored[key] for key in (name, prefix + name, name.removeprefix(prefix)) if key in stored), None)
        if held is None:
            held = expected.get(name)  # a tied weight
        if held is None or held.shape != weight.shape or not torch.equal(held.to(weight.dtype), weight):
            return False
    return True


def use(folder: Path) -> PreTrainedModel:
    """Do with a folder what the verbs do before and while they load it."""
    source = resolve(folder)
    refuse_compressed(source)
    skeleton = load_skeleton(source)
    role_table(skeleton, describe(skeleton))
    fingerprint(source), stored_bytes(source), read_in_place(source, None)
    model = load_model(source)
    describe(model)
    return model


def outcome(folder: Path, expected: dict[str, torch.Tensor]) -> str:
    """Return ``"refused"`` or ``"right"``, or what went wrong."""
    try:
        model = use(folder)
    except BasisSharingError as error:
        sentence = str(error)
        return "refused" if "\n" not in sentence and sentence.endswith(".") else f"no sentence: {sentence}"
    except Exception:
        return traceback.format_exc()
    return "right" if right(model, folder, expected) else "other weights"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", [in_json("config.json"), in_json(INDEX), in_header, in_files])
def test_damage_is_a_sentence(whole: Any, damage: Callable[[Path, random.Random], None], tmp_path: Path) -> None:
    folder, expected = whole
    outcomes: dict[int, str] = {}
    for seed in range(FIRST, FIRST + ROUNDS):
        copy = Path(shutil.copytree(folder, tmp_path / str(seed)))
        damage(copy, random.Random(seed))
        if is_small(copy):
            outcomes[seed] = outcome(copy, expected)
        shutil.rmtree(copy)
    counts = Counter(outcomes.values())
    print(f"{len(outcomes)} folders: {counts['refused']} refused, {counts['right']} right")
    assert counts["refused"]
    assert {seed: found for seed, found in outcomes.items() if found not in {"refused", "right"}} == {}
