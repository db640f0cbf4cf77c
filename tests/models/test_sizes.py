import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from basis_sharing.errors import ModelError
from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import memory_bytes, parameter_count, role_table, weight_file_bytes
from pico import PICO, save_pico


@pytest.mark.parametrize("name", PICO)
def test_rows_sum_to_the_model(name):
    model = PICO[name]()
    rows = role_table(model, describe(model))
    assert sum(row.parameters for row in rows) == parameter_count(model) == sum(p.numel() for p in model.parameters())
    assert sum(row.bytes for row in rows) == memory_bytes(model)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.reason for row in rows if not row.compressible)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_rows_of_a_model_on_meta_are_the_same(name):
    model = PICO[name]()
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(model.config)
    assert role_table(meta, describe(meta)) == role_table(model, describe(model))


def test_rows_of_a_tied_model():
    model = PICO["llama"]()
    rows = {row.name: row for row in role_table(model, describe(model))}
    assert (rows["q"].shapes, rows["q"].count, rows["q"].parameters) == (((64, 64),), 5, 5 * 64 * 64)
    assert rows["embeddings"].parameters == 260 * 64
    assert (rows["output head"].parameters, rows["output head"].bytes) == (0, 0)
    assert "tied" in rows["output head"].reason


def test_rows_of_an_untied_mixture_of_experts():
    model = PICO["mixtral"]()
    rows = {row.name: row for row in role_table(model, describe(model))}
    assert rows["output head"].parameters == 260 * 64
    assert rows["experts"].compressible
    assert rows["experts"].parameters == 4 * 4 * 3 * 64 * 96


def test_shared_tensors_and_buffers_count_once():
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(4, 4, dtype=torch.float16))
    model.b = model.a
    model.c = nn.Parameter(model.a.detach())
    model.register_buffer("d", torch.zeros(3, dtype=torch.int8))
    model.register_buffer("e", model.d)
    assert parameter_count(model) == 16
    assert memory_bytes(model) == 32 + 3


def test_bytes_of_files(tmp_path):
    folder = save_pico("llama", tmp_path / "sharded", max_shard_size="100KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 3
    (folder / "consolidated.safetensors").write_bytes(bytes(100))
    assert weight_file_bytes(folder) == sum(shard.stat().st_size for shard in shards)
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(bytes(10))
    assert weight_file_bytes(gguf) == 10


def test_bytes_of_no_files(tmp_path):
    with pytest.raises(ModelError, match="no weight files"):
        weight_file_bytes(tmp_path)
