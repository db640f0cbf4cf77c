"""Which files are the model, and what is said about files that cannot be read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from basis_sharing.errors import ModelError
from basis_sharing.models.file_checks import get_again
from basis_sharing.models.source import fingerprint, load_model, load_tokenizer, read_in_place, resolve, stored_bytes
from basis_sharing.models.weight_files import check_weight_files, read_header, weight_files
from pico import PICO, save_pico

SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico("llama", tmp_path_factory.mktemp("saved") / "llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def scaled(folder: Path, factor: float) -> dict[str, torch.Tensor]:
    return {name: weight * factor for name, weight in load_file(folder / SINGLE).items()}


def refusal(path: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(resolve(str(path)))
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# --- the files that transformers reads


def with_stale_shards(folder: Path) -> None:
    PICO["llama"]().save_pretrained(folder / "shards", max_shard_size="100KB")
    for file in (folder / "shards").glob("model*"):
        shutil.move(file, folder)


def with_strays_beside_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / PICKLE)
    (folder / SINGLE).rename(folder / "consolidated.safetensors")
    save_file({"step": torch.zeros(4)}, folder / "optimizer.safetensors")


def with_a_pickle_beside(folder: Path) -> None:
    torch.save(scaled(folder, 2), folder / PICKLE)


def under_a_name_of_the_configuration(folder: Path) -> None:
    save_file(scaled(folder, 1), folder / "weights.safetensors", {"format": "pt"})
    save_file(scaled(folder, 2), folder / SINGLE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "weights.safetensors"}))


@pytest.mark.parametrize(
    ("prepare", "name"),
    [
        (with_stale_shards, SINGLE),
        (with_strays_beside_a_pickle, PICKLE),
        (with_a_pickle_beside, SINGLE),
        (under_a_name_of_the_configuration, "weights.safetensors"),
    ],
)
def test_sizes_and_fingerprint_are_of_the_files_that_are_read(folder: Path, prepare, name: str, tmp_path: Path) -> None:
    prepare(folder)
    source = resolve(folder)
    assert weight_files(folder) == (folder / name,)
    assert stored_bytes(source) == (folder / name).stat().st_size
    assert read_in_place(source, None) == (name != PICKLE)
    model = load_model(source)
    torch.testing.assert_close(model.state_dict(), PICO["llama"]().state_dict())
    before = fingerprint(source)
    for other in folder.glob("*.*"):
        if other.suffix in {".safetensors", ".bin"} and other.name != name:
            other.write_bytes(b"something else")
    assert fingerprint(source) == before
    model.save_pretrained(tmp_path / "again")  # and the name of the files does not travel
    weights = {key: weight.clone() + 1 for key, weight in model.state_dict().items() if key != "lm_head.weight"}
    (folder / name).unlink()
    torch.save(weights, folder / name) if name == PICKLE else save_file(weights, folder / name, {"format": "pt"})
    assert fingerprint(source) != before
    assert load_model(resolve(tmp_path / "again")).config.model_type == "llama"


def test_strays_alone_are_no_model(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "consolidated.safetensors")
    assert "no weight files that transformers reads (consolidated.safetensors has another name)" in refusal(folder)


def test_two_saves_in_one_index_are_refused(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(weights, folder / name, {"format": "pt"})
    places = {key: ("a" if "embed" in key else "b") + ".safetensors" for key in weights}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert "a.safetensors and b.safetensors" in refusal(folder)


# --- files that cannot be read


def test_a_cache_of_the_hub_is_read_through_its_links(saved: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shutil.copytree(saved, cache / "blobs")
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_model(resolve(snapshot)).config.model_type == "llama"
    assert len(load_tokenizer(resolve(snapshot))) == 259
    assert "give org/name, or one of the folders in its snapshots" in refusal(cache)
    (cache / "blobs" / SINGLE).unlink()
    assert f"is a link to ../../blobs/{SINGLE}, which is not there" in refusal(snapshot)


@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull in"),
        (b"", "is empty"),
        (None, "is a folder, where a file is needed"),
    ],
)
def test_files_without_content_of_their_own(folder: Path, name: str, content: bytes | None, words: str) -> None:
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        load_tokenizer(resolve(folder)) if name == "tokenizer.json" else load_model(resolve(folder))
    assert name in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs rights to give up")
@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json", "."])
def test_files_that_may_not_be_read(saved: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.getbasetemp()
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("rights") / "model"))
    opened = [path for path in (top, *folder.parents) if path.is_relative_to(top.parent.parent)]
    modes = {path: path.stat().st_mode for path in opened}
    try:
        for path in opened:
            path.chmod(0o755)
        (folder / name).chmod(0)
        os.seteuid(65534)
        with pytest.raises(ModelError, match=r"Permission denied|cannot be loaded"):
            load_tokenizer(resolve(folder)) if name == "tokenizer.json" else load_model(resolve(folder))
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/model", "nul\0byte"])
def test_names_that_are_no_paths(name: str) -> None:
    assert refusal(name)


def test_other_ways_to_name_a_folder(folder: Path, tmp_path: Path) -> None:
    spaced = folder.rename(tmp_path / "my model")
    for name in (f"{spaced}/", spaced.as_uri(), f"{spaced}/../my model"):
        assert resolve(name).path is not None
        assert load_tokenizer(resolve(name))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a link to" in refusal(tmp_path / "link")


def test_only_what_was_downloaded_is_downloaded_again(folder: Path) -> None:
    assert "save the model again" in get_again(folder / SINGLE)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    assert get_again(folder / SINGLE) == get_again(Path("models--a--b/snapshots/0/x")) == "download it again"


# --- headers and pickles


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": entry(shape=[3])},
        {"a": entry(shape=[-1, -2])},
        {"a": entry(shape=[2.0])},
        {"a": entry(shape="2")},
        {"a": entry(dtype="F33")},
        {"a": entry(dtype=None)},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[0, 8, 16])},
        {"a": entry(data_offsets=["0", "8"])},
        {"a": {}},
        {"a": 1},
        [],
    ],
)
def test_headers_that_contradict_themselves(tmp_path: Path, tensors: object) -> None:
    header = json.dumps(tensors).encode()
    file = tmp_path / SINGLE
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match="is damaged"):
        read_header(file)
    with pytest.raises(ModelError, match="is damaged"):
        check_weight_files(file)


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("true",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a": torch.zeros(2)}, "step": 3}, "the state of a trainer"),
        ({"a": Runs()}, "could run code and is not read"),
        ([torch.zeros(2)], "more than weights by name"),
    ],
)
def test_pickles_that_are_not_weights_alone(folder: Path, content: object, words: str) -> None:
    (folder / SINGLE).unlink()
    torch.save(content, folder / PICKLE)
    message = refusal(folder)
    assert words in message
    assert not any(word in message for word in ("weights_only", "trust", "download"))
