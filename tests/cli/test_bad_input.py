"""Every mistake gets one sentence, exit code 2, and changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from basis_sharing import compress
from pico import TEXT, pico_tokenizer, save_pico
from workspace import Workspace


@pytest.fixture
def space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workspace:
    return Workspace(tmp_path, capsys)


def test_good_input_is_accepted(space: Workspace) -> None:
    arguments = ("compress", space.model, "-o", space.out, "--ratio=0.2", "--calibration", space.text, "--length=64")
    assert space.run(*arguments, "--windows=8") == 0
    assert (space.out / "config.json").is_file()
    shown = space.capsys.readouterr().out
    assert "ratio asked 0.2, reached 0.2" in shown
    assert "bytes on disk" in shown


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        ("0", "out of range"),
        ("1", "out of range"),
        ("1.5", "out of range"),
        ("-0.2", "out of range"),
        ("nan", "out of range"),
        ("abc", "'abc' is not a number"),
    ],
)
def test_ratio(space: Workspace, ratio: str, sentence: str) -> None:
    assert sentence in space.compress(ratio=ratio)


def test_unknown_method_suggests_the_nearest(space: Workspace) -> None:
    assert "did you mean 'basis-sharing'?" in space.compress(method="basis-shring")
    assert "did you mean 'svd-llm'?" in space.compress(method="svdllm")
    assert "choose from" in space.compress(method="zzzz")


@pytest.mark.parametrize(
    ("option", "value"),
    [("windows", 0), ("length", 1), ("seed", -1), ("group_size", 0), ("refit", "perhaps"), ("dtype", "int4")],
)
def test_other_settings(space: Workspace, option: str, value: object) -> None:
    assert option in space.compress(**{option: value})


def test_unknown_role_to_share(space: Workspace) -> None:
    assert "unknown role 'query'" in space.compress(share="query", method="basis-sharing")


def test_usage_errors_are_one_sentence_too(space: Workspace) -> None:
    assert "No such option" in space.refused("compress", space.model, "--colour", "red")
    assert "-o" in space.refused("compress", space.model)
    assert "No such command" in space.refused("comprss")


def test_missing_model(space: Workspace) -> None:
    assert "does not exist" in space.compress(model=space.root / "nowhere")
    assert "does not exist" in space.refused("evaluate", space.root / "nowhere")
    assert "does not exist" in space.refused("inspect", space.root / "nowhere")


def test_not_a_causal_language_model(space: Workspace) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForMaskedLM(BertConfig(vocab_size=260, **small))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=260, d_model=32, d_ff=32, num_layers=2, num_heads=2, d_kv=16))
    for name, model in (("BertForMaskedLM", bert), ("T5ForConditionalGeneration", t5)):
        folder = space.root / name
        model.save_pretrained(folder)
        pico_tokenizer().save_pretrained(folder)
        assert name in space.compress(model=folder)


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"only three words", "64"),
        (b"", "empty"),
        (b"\xff\xfe\x00binary" * 100, "UTF-8"),
    ],
)
def test_bad_texts(space: Workspace, content: bytes, sentence: str) -> None:
    bad = write_bytes(space.root / "bad.txt", content)
    assert sentence in space.compress(calibration=bad)
    assert sentence in space.compress(evaluate=bad)
    assert sentence in space.refused("evaluate", space.model, "--text", bad, "--length", 64)


def test_missing_text(space: Workspace) -> None:
    assert "nowhere.txt" in space.compress(calibration=space.root / "nowhere.txt")


def test_windows_of_another_tokenizer(space: Workspace) -> None:
    np.savez(space.root / "windows.npz", input_ids=np.full((4, 64), 5000))
    assert "5000" in space.compress(calibration=space.root / "windows.npz")


def test_output_exists(space: Workspace) -> None:
    taken = space.root / "taken"
    shutil.copytree(space.model, taken)
    assert "--overwrite" in space.compress(output=taken)


def test_output_is_the_input(space: Workspace) -> None:
    assert "is, or contains, the input" in space.compress("--overwrite", output=space.model)
    assert "is, or contains, the input" in space.compress("--overwrite", output=space.root)


def test_no_space_left(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(space.root)._replace(free=1000)
    monkeypatch.setattr("basis_sharing.checkpoint.writer.shutil.disk_usage", lambda _: usage)
    assert "make room" in space.compress()


def test_truncated_and_corrupt_shards(space: Workspace) -> None:
    shard = space.model / "model.safetensors"
    whole = shard.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4], b"\xff" * 8 + whole[8:]):
        shard.write_bytes(broken)
        assert "model.safetensors" in space.compress()
        assert "model.safetensors" in space.refused("evaluate", space.model, "--text", space.text, "--length", 64)


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_with_nan(space: Workspace) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    change_tensor(space.model, name, lambda weight: weight.index_fill(0, torch.tensor([3]), float("nan")))
    assert name in space.compress()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compression of the model of every workspace in each form."""
    root = tmp_path_factory.mktemp("made")
    model, text = save_pico("llama", root / "model"), root / "text.txt"
    text.write_text(TEXT)
    for form in ("plain", "pivoted"):
        settings = {"method": "basis-sharing", "windows": 4, "length": 64, "form": form}
        compress(model, 0.3, calibration=str(text), output=root / form, **settings)
    return root


@pytest.fixture
def folder(space: Workspace, made: Path) -> Path:
    """A compressed folder that a test may damage."""
    return Path(shutil.copytree(made / "plain", space.root / "compressed"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def test_already_compressed(space: Workspace, folder: Path) -> None:
    assert "already compressed" in space.compress(model=folder)


def test_inspecting_a_compressed_folder_shows_what_was_done(space: Workspace, folder: Path) -> None:
    assert space.run("inspect", folder) == 0
    assert "ratio asked 0.3, reached 0.3" in space.capsys.readouterr().out
    assert space.run("inspect", folder, "--json") == 0
    assert json.loads(space.capsys.readouterr().out)["recipe"]["ratio"] == 0.3
    (folder / "basis_sharing.json").write_text("{}")
    assert "holds no results of basis-sharing" in space.refused("inspect", folder)
    (folder / "basis_sharing.json").unlink()
    assert "already compressed" in space.refused("inspect", folder)


def test_newer_format_version(space: Workspace, folder: Path) -> None:
    change_config(folder, lambda config: config.update(format_version=3))
    assert "newer" in space.refused("evaluate", folder, "--text", space.text, "--length", 64)


def test_rank_that_disagrees_with_the_tensors(space: Workspace, folder: Path) -> None:
    change_config(folder, lambda config: config["entries"][0].update(rank=7))
    message = space.refused("evaluate", folder, "--text", space.text, "--length", 64)
    assert "rank 7" in message
    assert "has shape" in message


def test_compressed_folder_without_a_factor(space: Workspace, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("basis.weight"))
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert gone in space.refused("evaluate", folder, "--text", space.text, "--length", 64)


def test_malformed_entries(space: Workspace, folder: Path) -> None:
    for change, sentence in (
        (lambda config: config["entries"].append(config["entries"][0]), "belongs to two entries"),
        (lambda config: config.update(entries=[]), "no entries are listed"),
        (lambda config: config["entries"][0].update(form="twisted"), "update basis-sharing"),
        (lambda config: config["entries"][0].update(form="pivoted"), "must have pivots"),
        (lambda config: config["entries"][0].update(rank="many"), "a positive integer is needed"),
    ):
        original = (folder / "config.json").read_text()
        change_config(folder, change)
        assert sentence in space.refused("evaluate", folder, "--text", space.text, "--length", 64)
        (folder / "config.json").write_text(original)


def test_damaged_pivots(space: Workspace, made: Path) -> None:
    folder = Path(shutil.copytree(made / "pivoted", space.root / "compressed"))
    original = (folder / "config.json").read_text()
    for pivots, sentence in (("AAAAAAAAAAA=", "marks 0 pivots"), ("AAAA", "base64 form of"), ("?", "base64 form of")):
        change_config(folder, lambda config, pivots=pivots: config["entries"][0].update(pivots=pivots))
        assert sentence in space.refused("evaluate", folder, "--text", space.text, "--length", 64)
        (folder / "config.json").write_text(original)


def test_too_large_evaluation_settings(space: Workspace) -> None:
    assert "--evaluation-windows 0" in space.refused("evaluate", space.model, "--evaluation-windows", 0)
    assert "is called --evaluation-windows here" in space.refused("evaluate", space.model, "--windows", 3)
    assert "unknown dtype" in space.refused("evaluate", space.model, "--dtype", "int8")


def test_recipe_files(space: Workspace) -> None:
    recipe = space.root / "recipe.yaml"
    recipe.write_text(f"ratio: 0.3\ncalibration: {space.text}\nlength: 64\nwindows: 4\n")
    assert space.run("compress", space.model, "-o", space.out, "--recipe", recipe, "--ratio", "0.25", "--json") == 0
    result = json.loads(space.capsys.readouterr().out)
    assert result["recipe"]["ratio"] == 0.25
    assert result["recipe"]["windows"] == 4
    assert "the target is missing" in space.refused("compress", space.model, "-o", space.root / "other")
    recipe.write_text("ratio: 0.3\nmehtod: svd\n")
    message = space.refused("compress", space.model, "-o", space.root / "other", "--recipe", recipe)
    assert "did you mean 'method'?" in message


def test_inspect_and_eval_speak_json(space: Workspace) -> None:
    assert space.run("inspect", space.model, "--json") == 0
    shown = json.loads(space.capsys.readouterr().out)
    assert shown["family"] == "llama"
    assert {row["name"] for row in shown["rows"]} >= {"q", "k", "v", "o", "gate", "up", "down", "embeddings"}
    assert space.run("evaluate", space.model, "--text", space.text, "--length", 64, "--json") == 0
    (found,) = json.loads(space.capsys.readouterr().out)["perplexities"]
    assert found["perplexity"] > 1


def test_tables_are_readable(space: Workspace) -> None:
    assert space.run("inspect", space.model) == 0
    assert "embeddings" in space.capsys.readouterr().out
    assert space.run("evaluate", space.model, "--text", space.text, "--length", 64) == 0
    assert "bits/byte" in space.capsys.readouterr().out
