"""Exports to runtimes: what they hold, what they compute, how they are compared, and what is refused."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import basis_sharing
from architectures import tiny
from basis_sharing.checkpoint.loading import load_any
from basis_sharing.engines.base import ENGINES, MANIFEST
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.exports.base import EXPORTS
from basis_sharing.exports.mlx import MODEL_FILE
from basis_sharing.exports.runtimes import checking
from basis_sharing.exports.runtimes.checking import Followed, check, reference_of
from basis_sharing.exports.runtimes.traced import RuntimeExport, sample_inputs, tracing_errors, unpack_weights
from basis_sharing.reports.tables.benchmark import benchmark_tables, conclusions
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.export import ExportResult
from basis_sharing.results.inspection import Inspection
from pico import PICO, pico_tokenizer, save_pico

RUNTIMES = ["onnx", "openvino", "mlx", "executorch"]
DATA = {
    "onnx": "model.onnx.data",
    "openvino": "openvino_model.bin",
    "mlx": "model.safetensors",
    "executorch": "model.pte",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model of two blocks, which share their bases."""
    path = tmp_path_factory.mktemp("models")
    model = save_pico("llama", path / "model", blocks=2)
    settings: dict[str, Any] = {"method": "basis-sharing", "windows": 4, "length": 32, "calibration_dtype": "float32"}
    basis_sharing.compress(model, ratio=0.3, output=path / "small", form="pivoted", **settings)
    return path / "small"


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, exported to a runtime."""
    pytest.importorskip(ENGINES[request.param].module)
    output = tmp_path_factory.mktemp("exports") / str(request.param)
    assert basis_sharing.export(folder, output, to=request.param) == output
    return output


def test_it_was_compared_in_a_process_without_torch(exported: Path) -> None:
    found = ExportResult.read(exported / MANIFEST)
    assert (found.form, found.weights) == (exported.name, "float32")
    assert found.check.same == found.check.tokens == 3 * 17
    assert found.check.largest_difference < 1e-4
    assert found.check.without_torch == (exported.name in ("onnx", "openvino")), "the others import torch themselves"
    assert found.bytes_on_disk == sum(file.stat().st_size for file in exported.iterdir() if file.name != MANIFEST)
    assert ENGINES[exported.name].package in found.versions


def test_a_shared_basis_is_stored_once(exported: Path, folder: Path) -> None:
    data = exported / DATA[exported.name]
    model, _ = load_any(folder, torch.float32)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    graph = 0.2 * numbers
    if exported.name == "executorch":  # a tied head is stored again, and the program for every block
        numbers, graph = numbers + model.lm_head.weight.numel(), 90_000
    assert 4 * numbers <= data.stat().st_size < 4 * numbers + graph


def test_batches_of_any_size_are_read_in_any_pieces(exported: Path, folder: Path) -> None:
    decoder = ENGINES[exported.name].start(exported, 1)
    model, _ = load_any(folder, torch.float32)
    ids = np.arange(33).reshape(3, 11)[: ENGINES[exported.name].largest_batch]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    for pieces in ([11], [4, 1, 6]):
        decoder.restart()
        read = 0
        for length in pieces:
            found = decoder.step(ids[:, read : read + length])
            read += length
            np.testing.assert_allclose(found, expected[:, read - 1], rtol=1e-3, atol=1e-4)


def test_the_folder_holds_what_other_tools_read(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"quantization_config", "auto_map"} & config.keys()
    assert [path.name for path in exported.glob("*.py")] == [MODEL_FILE] * (exported.name == "mlx")
    assert (exported / "tokenizer.json").is_file()
    assert (exported / "generation_config.json").is_file()
    if exported.name == "openvino":
        assert (exported / "openvino_tokenizer.xml").is_file()
        assert (exported / "openvino_detokenizer.xml").is_file()
    if exported.name != "onnx":
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    genai = json.loads((exported / "genai_config.json").read_text())["model"]
    inputs, outputs = genai["decoder"]["inputs"], genai["decoder"]["outputs"]
    layers = range(genai["decoder"]["num_hidden_layers"])
    past = {inputs[part] % layer for part in ("past_key_names", "past_value_names") for layer in layers}
    present = {outputs[part] % layer for part in ("present_key_names", "present_value_names") for layer in layers}
    assert {one.name for one in session.get_inputs()} == past | {"input_ids", "attention_mask", "position_ids"}
    assert {one.name for one in session.get_outputs()} == present | {"logits"}
    assert (exported / "model.onnx").stat().st_size < 100_000, "the graph holds more than the graph"


def test_its_size_is_what_inspect_says(exported: Path, folder: Path) -> None:
    found = basis_sharing.inspect(folder.parent / "model", runs_on="edge", runtime=exported.name)
    assert isinstance(found, Inspection)
    (size,) = (each.bytes for each in found.exports if each.weights == "float32")
    removed = CompressionResult.read(folder / RESULT_FILE)
    expected = size - 4 * (removed.before.parameters - removed.after.parameters)
    graph = 90_000 if exported.name == "executorch" else 0
    assert (exported / DATA[exported.name]).stat().st_size == pytest.approx(expected, rel=0.04, abs=graph)


def test_padding_is_hidden(exported: Path, folder: Path) -> None:
    if exported.name != "onnx":
        pytest.skip("one runtime shows it: the mask is an input of both")
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    ids, mask = np.arange(12).reshape(2, 6), np.ones((2, 6), np.int64)
    mask[0, :3] = 0
    past = {
        one.name: np.zeros((2, one.shape[1], 0, one.shape[3]), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past")
    }
    positions = (mask.cumsum(-1) - 1).clip(0)
    fed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
    logits = session.run(["logits"], fed)[0]
    model, _ = load_any(folder, torch.float32)
    with torch.no_grad():
        alone = model(input_ids=torch.from_numpy(ids[:1, 3:])).logits.numpy()
    np.testing.assert_allclose(logits[0, -1], alone[0, -1], rtol=1e-3, atol=1e-4)


def test_an_export_that_computes_something_else_is_refused(exported: Path, folder: Path) -> None:
    model, tokenizer = load_any(folder, torch.float32)
    reference = reference_of(model, tokenizer)
    wrong = [Followed(each.prompt, each.tokens, each.logits + torch.randn_like(each.logits)) for each in reference]
    with pytest.raises(ModelError, match=r"differs too much from the model: .* Nothing was written: please report"):
        check(exported, exported.name, "float32", wrong)
    with pytest.raises(ModelError, match=r"0.05 are allowed with weights in int8\. .* choose --weights with more bits"):
        check(exported, exported.name, "int8", wrong)
    few = [Followed(each.prompt, each.tokens, each.logits[:, :100]) for each in reference]
    with pytest.raises(ModelError, match=r"gives 260 logits instead of 100"):
        check(exported, exported.name, "float32", few)


def test_an_export_that_cannot_be_loaded_is_refused(exported: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    heart = (".onnx", ".xml", ".safetensors", ".pte")
    for file in exported.iterdir():
        (broken / file.name).write_bytes(b"" if file.suffix in heart else file.read_bytes())
    with pytest.raises(ModelError, match=r"cannot load it: .*, so nothing was written"):
        check(broken, exported.name, "float32", [])


def test_they_are_measured_in_turns(exported: Path, tmp_path: Path) -> None:
    sizes = (1, 3) if ENGINES[exported.name].largest_batch is None else (1,)
    settings: dict[str, Any] = {"prompt_tokens": 12, "new_tokens": 3, "batch_sizes": sizes, "repeats": 1}
    result = basis_sharing.bench([exported, exported], engine=exported.name, precision=None, device="cpu", **settings)
    assert [(t.workload, t.execution, t.batch) for t in result.models[1].timings] == [
        *(("first token", "exported", size) for size in sizes),
        *(("decode", "exported", size) for size in sizes),
    ]
    assert all(second > 0 for t in result.models[1].timings for second in t.seconds)
    first = result.models[0]
    assert first.bytes_on_disk == ExportResult.read(exported / MANIFEST).bytes_on_disk
    assert first.memory is not None
    assert 0 < first.memory.loading <= first.memory.running
    assert ENGINES[exported.name].package in result.versions
    result.write(tmp_path / "bench.json")
    assert BenchmarkResult.read(tmp_path / "bench.json") == result
    shown = " ".join(str(cell) for table in benchmark_tables(result) for row in table.rows for cell in row)
    assert f"first token, batch {sizes[-1]}" in shown
    assert "measured" in conclusions(result)[0]
    assert "ideally" not in conclusions(result)[0]


def test_what_is_no_export_for_the_engine_is_not_measured(exported: Path, folder: Path) -> None:
    with pytest.raises(
        ModelError, match=rf"is no export for --engine {exported.name}: write one with basis-sharing exp"
    ):
        basis_sharing.bench([folder], engine=exported.name, device="cpu")
    other = next(name for name in RUNTIMES if name != exported.name)
    with pytest.raises(
        ModelError, match=rf"is an export for {exported.name}: measure it with --engine {exported.name}"
    ):
        basis_sharing.bench([exported], engine=other, device="cpu")


def test_weights_in_few_bits_are_unpacked(tmp_path: Path) -> None:
    model = save_pico("llama", tmp_path / "model", blocks=2)
    settings: dict[str, Any] = {"windows": 4, "length": 32, "scale_group": 32, "embedding_bits": 8}
    basis_sharing.compress(model, bits=5, output=tmp_path / "small", **settings)
    loaded, _ = load_any(tmp_path / "small", torch.float32)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        expected = loaded(ids).logits
        unpack_weights(loaded)
        found = loaded(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_models_with_other_states_are_refused() -> None:
    with pytest.raises(ModelError, match=r"keeps more than keys and values between tokens.*use --to dense"):
        sample_inputs(tiny("qwen3_next"))


def test_samples_have_keys_and_values_of_all_tokens() -> None:
    inputs = sample_inputs(PICO["gemma3"]())
    cache = next(value for value in inputs.values() if hasattr(value, "layers"))
    assert {tuple(layer.keys.shape[:3:2]) for layer in cache.layers} == {(2, 5)}
    assert inputs["attention_mask"].shape == (2, 9)


def test_a_missing_package_names_the_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("basis_sharing.engines.base.version", absent)
    for name in RUNTIMES:
        with pytest.raises(RecipeError, match=rf"not installed: pip install 'basis-sharing\[{name}\]'"):
            basis_sharing.export(folder, tmp_path / "out", to=name)
    assert not (tmp_path / "out").exists()


def test_old_exporters_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_sharing.engines.base.version", lambda package: "1.0")
    monkeypatch.setattr("transformers.__version__", "5.6.0")
    with pytest.raises(RecipeError, match=r"needs the exporters of transformers 5\.24, and 5\.6\.0 is installed"):
        basis_sharing.export(folder, tmp_path / "out", to="onnx")


def test_what_goes_wrong_in_a_library_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    def convert() -> None:
        with tracing_errors(Path("model")):
            print("words of a library")
            raise ValueError("no such part.\nmore words")

    with pytest.raises(ModelError, match=r"model cannot be converted: no such part \(ValueError\)\. Try --to dense"):
        convert()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", RUNTIMES)
def test_weights_that_a_form_has_not_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"--to {name} has no weights 'int3': choose from float32, .*int8"):
        basis_sharing.export(folder, tmp_path / "out", to=name, weights="int3")
    with pytest.raises(RecipeError, match="--to dense writes weights as they are: leave out --weights"):
        basis_sharing.export(folder, tmp_path / "out", to="dense", weights="int8")


def test_every_form_of_weights_has_a_bound() -> None:
    forms = {form for export in EXPORTS.values() if isinstance(export, RuntimeExport) for form in export.weights}
    assert forms == set(checking.NATS)


def test_the_reference_is_what_generate_chooses() -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    for each in reference_of(model, tokenizer):
        ids = torch.tensor([each.prompt])
        chosen = model.generate(ids, max_new_tokens=checking.TOKENS, do_sample=False, eos_token_id=None)
        assert chosen[0, len(each.prompt) :].tolist() == each.tokens
        assert each.logits.shape == (checking.TOKENS + 1, model.config.vocab_size)


def test_executorch_reads_one_sequence_as_long_as_its_cache(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    basis_sharing.export(folder, tmp_path / "out", to="executorch", weights="int8")
    with pytest.raises(RecipeError, match="exports for executorch read 1 sequence at once: pass --batch-sizes 1"):
        basis_sharing.bench([tmp_path / "out"], engine="executorch", device="cpu")
    decoder = ENGINES["executorch"].start(tmp_path / "out", 1)
    length = load_any(folder, torch.float32)[0].config.max_position_embeddings
    decoder.step(np.arange(length)[None] % 250)
    with pytest.raises(ModelError, match=rf"holds {length} tokens, and {length + 1} are to be read"):
        decoder.step(np.zeros((1, 1), np.int64))
