"""A densified model is ordinary: native files, native classes, the compressed model's numbers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import basis_sharing
from basis_sharing.cli.main import main
from basis_sharing.exports.dense import dense_model
from pico import PICO, save_pico

IDS = torch.arange(24)[None]
SETTINGS = {"method": "basis-sharing", "windows": 6, "length": 64, "calibration_dtype": "float32"}


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("name", list(PICO))
def test_it_computes_the_same_with_native_classes(name: str, form: str, tmp_path: Path) -> None:
    compressed, _ = basis_sharing.compress(save_pico(name, tmp_path / "model"), ratio=0.3, form=form, **SETTINGS)
    dense = dense_model(compressed)
    assert type(dense) is type(PICO[name]())
    shapes = {key: value.shape for key, value in PICO[name]().state_dict().items()}
    assert {key: value.shape for key, value in dense.state_dict().items()} == shapes
    with torch.no_grad():
        torch.testing.assert_close(dense(IDS).logits, compressed(IDS).logits, rtol=1e-3, atol=1e-4)


def test_the_folder_is_ordinary_and_the_input_is_left_alone(tmp_path: Path) -> None:
    model, folder, output = save_pico("gpt2", tmp_path / "model"), tmp_path / "small", tmp_path / "dense"
    basis_sharing.compress(model, ratio=0.3, output=folder, **SETTINGS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(["densify", str(folder), "-o", str(output)])
    assert stop.value.code == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not {"quantization_config", "auto_map"} & json.loads((output / "config.json").read_text()).keys()
    assert not list(output.glob("*.py"))
    loaded, small = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (output, folder))
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, small(IDS).logits, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in PICO["gpt2"]().parameters())


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_densified_is_refused(
    overwrite: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = save_pico("llama", tmp_path / "model"), tmp_path / "small"
    basis_sharing.compress(model, ratio=0.3, output=folder, **SETTINGS)

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["densify", *map(str, arguments), *(["--overwrite"] if overwrite else [])])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "there is nothing to multiply out" in refused(model, "-o", tmp_path / "out")
    assert "does not exist" in refused(tmp_path / "none", "-o", tmp_path / "out")
    assert "is, or contains, the input" in refused(folder, "-o", folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full" in refused(folder, "-o", tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()
