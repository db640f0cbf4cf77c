"""What a model consists of, as data; what a compression did."""

import json

import pytest

import basis_sharing
from basis_sharing.cli.main import main
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.inspection import Inspection
from pico import save_pico


def test_a_dense_model(tmp_path):
    inspection = basis_sharing.inspect(save_pico("llama", tmp_path / "model"))
    assert isinstance(inspection, Inspection)
    assert (inspection.family, inspection.start_with) == ("llama", ("gate", "up", "down"))
    assert {"q", "k", "v", "o", "gate", "up", "down", "embeddings"} <= {row.name for row in inspection.rows}
    assert sum(row.share for row in inspection.rows) == pytest.approx(1)
    inspection.write(tmp_path / "inspection.json")
    assert Inspection.read(tmp_path / "inspection.json") == inspection


def test_a_compressed_model_is_what_was_done_to_it(tmp_path):
    _, result = basis_sharing.compress(
        save_pico("llama", tmp_path / "model"), 0.3, method="svd", output=tmp_path / "small"
    )
    assert basis_sharing.inspect(tmp_path / "small") == CompressionResult.read(tmp_path / "small/basis_sharing.json")
    assert basis_sharing.inspect(tmp_path / "small").ratio_reached == result.ratio_reached


def test_what_it_needs_in_other_runtimes(tmp_path, capsys):
    folder = save_pico("llama", tmp_path / "model")
    found = basis_sharing.inspect(folder, runs_on="edge", memory="150KiB")
    sizes = {(each.export, each.weights): each for each in found.exports}
    parameters = sum(row.parameters for row in found.rows)
    assert sizes["onnx", "float32"].bytes == sizes["mlx", "float32"].bytes == 4 * parameters
    compressible = sum(row.parameters for row in found.rows if row.compressible)
    for each in found.exports:
        assert each.removed is not None
        per_parameter = {"float32": 4, "float16": 2}.get(each.weights)
        if per_parameter is not None:
            left = each.bytes - each.removed * compressible * per_parameter
            assert left == pytest.approx(150 * 1024)
    assert sizes["openvino", "int4"].removed == 0
    found.write(tmp_path / "inspection.json")
    assert Inspection.read(tmp_path / "inspection.json") == found
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(folder), "--for", "edge", "--memory", "150KiB", "--runtime", "openvino"])
    told = capsys.readouterr().out
    assert "fits as it is" in told
    assert "--ratio 0." in told or "does not fit" in told
    assert "mlx" not in told
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(folder), "--for", "edge"])
    assert "fit" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"memory": "1GiB"}, "--memory is about exports: add --for edge"),
        ({"runtime": "onnx"}, "--runtime is about exports: add --for edge"),
        ({"runs_on": "cuda"}, "--for cuda: the only one is edge"),
        ({"runs_on": "edge", "runtime": "dense"}, "unknown runtime 'dense': choose from executorch, mlx, onnx"),
        ({"runs_on": "edge", "memory": "much"}, "'much' is not a size of memory"),
    ],
)
def test_wrong_settings_of_exports(settings, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        basis_sharing.inspect(tmp_path, **settings)


def test_no_model(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        basis_sharing.inspect(tmp_path / "nowhere")


def test_the_verb_says_it_too(tmp_path, capsys):
    folder = save_pico("llama", tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["start_with"] == ["gate", "up", "down"]
    rows = {found["name"]: found for found in shown["rows"]}
    assert rows["q"]["saved_bytes"] == {"0.2": 16384, "0.5": 40960}
    assert rows["embeddings"]["saved_bytes"] == {"0.2": 0, "0.5": 0}
