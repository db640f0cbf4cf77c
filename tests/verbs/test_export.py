"""Exports: ordinary folders, written whole or not at all, from the Python verb and from the command line."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import basis_sharing
from basis_sharing.cli.main import main
from basis_sharing.errors import ModelError
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.runtime.entries_basis_sharing import Bits
from forks import fresh
from pico import PICO, save_pico

IDS = torch.arange(24)[None]
SETTINGS = {"method": "basis-sharing", "windows": 6, "length": 64, "calibration_dtype": "float32"}


def test_the_folder_is_ordinary_and_the_input_is_left_alone(tmp_path: Path) -> None:
    model, folder, output = save_pico("gpt2", tmp_path / "model"), tmp_path / "small", tmp_path / "dense"
    basis_sharing.compress(model, ratio=0.3, output=folder, **SETTINGS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert basis_sharing.export(folder, output, to="dense") == output
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not {"quantization_config", "auto_map"} & json.loads((output / "config.json").read_text()).keys()
    assert not list(output.glob("*.py"))
    loaded, small = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (output, folder))
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, small(IDS).logits, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in PICO["gpt2"]().parameters())


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_exported_is_refused(
    overwrite: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = save_pico("llama", tmp_path / "model"), tmp_path / "small"
    basis_sharing.compress(model, ratio=0.3, output=folder, **SETTINGS)

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["export", *map(str, arguments), *(["--overwrite"] if overwrite else [])])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "nothing to export" in refused(model, "-o", tmp_path / "out")
    told = refused(folder, "-o", tmp_path / "out", "--to", "paper")
    assert "unknown export 'paper': choose from " in told
    assert all(form in told for form in ("compressed-tensors", "dense", "mlx", "onnx", "openvino"))
    assert "does not exist" in refused(tmp_path / "none", "-o", tmp_path / "out")
    assert "is, or contains, the input" in refused(folder, "-o", folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full" in refused(folder, "-o", tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_the_old_verb_says_what_to_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["densify", "small", "-o", "dense"])
    assert stop.value.code == 2
    renamed = "error: densify was renamed: call basis-sharing export FOLDER -o OUT --to dense instead.\n"
    assert capsys.readouterr().err == renamed


WITHOUT_US = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "basis_sharing" not in sys.modules
AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.arange(24)[None]).logits, "logits.pt")
"""


def rounded(tmp_path: Path, **settings: object) -> Path:
    """Compress a model by rounding; return the folder."""
    model, folder = save_pico("llama", tmp_path / "model"), tmp_path / "small"
    options = {"windows": 6, "length": 64, "bits": 6, "treatments": "bits", "scale_group": 32, "zero_points": False}
    basis_sharing.compress(model, output=folder, overwrite=True, **{**options, **settings})
    return folder


def test_rounded_weights_load_elsewhere_as_compressed_tensors(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    folder, output = rounded(tmp_path), tmp_path / "out"
    basis_sharing.export(folder, output, to="compressed-tensors")
    assert not list(output.glob("*.py"))
    done = fresh(WITHOUT_US, output, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)
    groups = json.loads((output / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert {group["weights"]["num_bits"] for group in groups} == {4, 8}
    bits = {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]}
    entries = CompressionResult.read(folder / RESULT_FILE).entries
    own = {report.entry.owner: report.entry.weight_grid.bits for report in entries if isinstance(report.entry, Bits)}
    assert own.keys() == bits.keys()
    assert all(bits[name] >= own[name] for name in own)
    assert any(bits[name] > own[name] for name in own), (
        "no projection had fewer bits than another that it is fused with"
    )
    for block in range(5):
        read = [f"model.layers.{block}.self_attn.{role}_proj" for role in "qkv"]
        assert len({bits[name] for name in read}) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"zero_points": True}, "has zero points, which transformers cannot load in this form: .* --no-zero-points"),
        ({"bits": 4, "widths": "8,3"}, "has 3 bits, which compressed-tensors packs otherwise"),
        (
            {"bits": None, "ratio": 0.3, "treatments": "factors", "scale_group": None, "zero_points": True},
            "has factors, which compressed-tensors has no",
        ),
    ],
)
def test_what_compressed_tensors_cannot_hold(settings: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=sentence):
        basis_sharing.export(rounded(tmp_path, **settings), tmp_path / "out", to="compressed-tensors")
    assert not (tmp_path / "out").exists()
