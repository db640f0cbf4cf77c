"""Any model, dense or compressed, by one call."""

import json
from pathlib import Path

import pytest
import torch

import basis_sharing
from basis_sharing.errors import CheckpointError, RecipeError
from pico import PICO, save_pico


def test_dense_and_compressed(tmp_path: Path) -> None:
    folder = save_pico("llama", tmp_path / "model")
    model, tokenizer = basis_sharing.load(folder, device="cpu")
    assert type(model) is type(PICO["llama"]())
    assert not model.training
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] != []
    basis_sharing.compress(folder, 0.3, method="svd", output=tmp_path / "small")
    small, _ = basis_sharing.load(tmp_path / "small", dtype="bfloat16", device="cpu")
    assert small.dtype == torch.bfloat16
    assert small.num_parameters() < model.num_parameters()


def test_a_compressed_folder_is_checked_first(tmp_path: Path) -> None:
    basis_sharing.compress(save_pico("llama", tmp_path / "model"), 0.3, method="svd", output=tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["quantization_config"]["entries"][0]["rank"] = 7
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rank 7"):
        basis_sharing.load(tmp_path / "small")


def test_wrong_settings(tmp_path: Path) -> None:
    folder = save_pico("llama", tmp_path / "model")
    with pytest.raises(RecipeError, match="unknown dtype 'int8'"):
        basis_sharing.load(folder, dtype="int8")
    with pytest.raises(RecipeError, match="unknown device 'tpu'"):
        basis_sharing.load(folder, device="tpu")
