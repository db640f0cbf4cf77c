import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, LlamaConfig, T5Config
from transformers.utils import logging

from basis_sharing.errors import ModelError
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.source import (
    check_finite,
    fingerprint,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    refuse_compressed,
    resolve,
)
from pico import PICO, save_pico


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.set_num_threads(1)
    return save_pico("llama", tmp_path_factory.mktemp("saved") / "llama", dtype=torch.bfloat16, max_shard_size="60KB")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def refusal(folder, action=load_model):
    with pytest.raises(ModelError) as caught:
        action(resolve(folder))
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# --- what works


def test_load_keeps_the_stored_dtype_or_converts(saved):
    source = resolve(saved)
    assert (source.kind, source.gguf_file) == ("folder", None)
    model = load_model(source)
    assert (model.dtype, model.device.type, model.training) == (torch.bfloat16, "cpu", False)
    assert load_model(source, torch.float32).dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), PICO["llama"]().to(torch.bfloat16).state_dict())


def test_dtype_comes_from_the_files_if_the_configuration_does_not_say(folder):
    edit_config(folder, dtype=None)
    assert load_model(resolve(folder)).dtype == load_skeleton(resolve(folder)).dtype == torch.bfloat16


def test_skeleton_has_the_same_shapes(saved):
    model, skeleton = load_model(resolve(saved)), load_skeleton(resolve(saved))
    assert skeleton.device.type == "meta"
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (model, skeleton)]
    assert shapes[0] == shapes[1]
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight


def test_tokenizer(saved):
    tokenizer = load_tokenizer(resolve(saved))
    assert tokenizer.decode(tokenizer("héllo").input_ids) == "héllo"
    assert tokenizer.chat_template


def test_loading_is_silent_and_restores_the_settings(saved, capfd):
    logging.set_verbosity_info()
    bars = logging.is_progress_bar_enabled()
    try:
        load_model(resolve(saved))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


# --- fingerprint


def test_fingerprint_ignores_the_place_and_the_time(saved, folder):
    edit_config(folder, transformers_version="0", _name_or_path="elsewhere")
    assert fingerprint(resolve(folder)) == fingerprint(resolve(saved))


def test_fingerprint_sees_the_configuration_and_single_weights(saved, folder):
    before = fingerprint(resolve(saved))
    file = shards(folder)[2]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    changed = fingerprint(resolve(folder))
    edit_config(folder, rms_norm_eps=0.5)
    assert len({before, changed, fingerprint(resolve(folder))}) == 3


# --- paths and names


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such", "a/b/c", "no/such.gguf"])
def test_missing_path(name):
    with pytest.raises(ModelError, match="does not exist"):
        resolve(name)


def test_unreachable_hub(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr("basis_sharing.models.hub.snapshot_download", unreachable)
    source = resolve("org/name")
    assert source.kind == "hub"
    with pytest.raises(ModelError, match=r"could not be fetched.*Name or service not known\).*network\.$"):
        load_config(source)


def test_hub_models_are_downloaded_and_read_like_folders(monkeypatch, saved):
    asked = []

    def download(repo, allow_patterns):
        asked.extend(allow_patterns)
        return str(saved)

    monkeypatch.setattr("basis_sharing.models.hub.snapshot_download", download)
    load_config(resolve("org/name"))
    assert not any("safetensors" in pattern for pattern in asked)
    assert load_model(resolve("org/name")).dtype == torch.bfloat16
    assert "pytorch_model*.bin" not in asked


def test_folder_without_configuration(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(tmp_path)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is a file"):
        resolve(tmp_path / "notes.txt")


def test_several_gguf_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="2 GGUF files"):
        resolve(tmp_path)
    assert resolve(tmp_path / "b.gguf").gguf_file == "b.gguf"


# --- configurations


@pytest.mark.parametrize(
    ("text", "words"),
    [("{broken", "not valid JSON"), ("\xff", "not valid JSON"), ("[" * 9999, "not"), ("", "is empty")],
)
def test_configuration_is_not_json(folder, text, words):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert words in refusal(folder, load_config)


def test_configuration_is_not_an_object(folder):
    (folder / "config.json").write_text("[]")
    assert "not a model configuration" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "architecture", "words"),
    [
        (BertConfig(), "BertForMaskedLM", "not a causal language model (BertForMaskedLM)"),
        (BertConfig(), None, "not a causal language model (a model of type 'bert')"),
        (T5Config(), "T5ForConditionalGeneration", "encoder-decoder (T5ForConditionalGeneration)"),
        (LlamaConfig(), "LlamaForSequenceClassification", "LlamaForSequenceClassification"),
    ],
)
def test_other_tasks(tmp_path, config, architecture, words):
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(tmp_path)
    for action in (load_config, load_model, load_skeleton):
        assert words in refusal(tmp_path, action)


@pytest.mark.parametrize(
    ("model_type", "architecture", "words"),
    [
        ("clip", "CLIPModel", "multimodal model (CLIPModel) that writes no text"),
        ("whisper", "WhisperForConditionalGeneration", "encoder-decoder (WhisperForConditionalGeneration)"),
        ("t5gemma2", "T5Gemma2ForConditionalGeneration", "encoder-decoder (T5Gemma2ForConditionalGeneration)"),
        ("florence2", None, "encoder-decoder (a model of type 'florence2')"),
    ],
)
def test_multimodal_models_without_a_language_model(tmp_path, model_type, architecture, words):
    config = AutoConfig.for_model(model_type)
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(tmp_path)
    for action in (load_config, load_model, load_skeleton):
        assert words in refusal(tmp_path, action)


def test_unknown_model_type(folder):
    edit_config(folder, model_type="brand_new", architectures=["BrandNewForCausalLM"])
    assert "does not know" in refusal(folder)


def test_already_compressed_or_quantized(folder):
    refuse_compressed(resolve(folder))
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantized with gptq" in refusal(folder, refuse_compressed)
    edit_config(folder, quantization_config={"quant_method": "basis_sharing"})
    assert "already compressed by basis-sharing; compress the original instead" in refusal(folder, refuse_compressed)
    assert is_compressed({"quantization_config": {"quant_method": "basis_sharing"}})
    assert not is_compressed({"quantization_config": None})


# --- weights


def test_no_weight_files(folder):
    for file in (*shards(folder), folder / "model.safetensors.index.json"):
        file.unlink()
    assert "no weight files" in refusal(folder)


def test_truncated_shard(folder):
    file = shards(folder)[1]
    file.write_bytes(file.read_bytes()[:-10])
    message = refusal(folder)
    assert "truncated" in message
    assert file.name in message


@pytest.mark.parametrize("content", [b"abc", b"\xff" * 64, (20).to_bytes(8, "little") + b"x" * 40])
def test_damaged_header(folder, content):
    file = shards(folder)[1]
    file.write_bytes(content)
    message = refusal(folder)
    assert "damaged" in message
    assert file.name in message


def test_missing_shard(folder):
    file = shards(folder)[-1]
    file.unlink()
    message = refusal(folder)
    assert "incomplete" in message
    assert file.name in message


def test_damaged_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index of shards" in refusal(folder)


def test_weights_are_never_started_at_random(tmp_path):
    folder = save_pico("llama", tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "(the first is model.layers.2.mlp.up_proj.weight)" in refusal(folder)


def test_weights_of_another_shape(folder):
    edit_config(folder, intermediate_size=128)
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_not_finite(value, dtype):
    model = PICO["llama"]().to(dtype)
    check_finite(model)
    for index in (3, 1):
        model.model.layers[index].mlp.up_proj.weight.data[5, 7] = value
    with pytest.raises(ModelError, match=r"The weight model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        check_finite(model)


def test_not_finite_in_a_file(tmp_path):
    folder = save_pico("gpt2", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.2.mlp.c_fc.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "h.2.mlp.c_fc.weight" in refusal(folder)


def test_no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "tokenizer" in refusal(folder, load_tokenizer)


# --- GGUF


def test_damaged_gguf(tmp_path):
    for content in (b"GGUFgarbage", b"no gguf at all"):
        (tmp_path / "model.gguf").write_bytes(content)
        assert "no GGUF file, or is damaged" in refusal(tmp_path)
