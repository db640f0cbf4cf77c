import sys

import pytest
import torch

from basis_sharing.benchmark import memory
from basis_sharing.benchmark.memory import can_measure, measure_here, peak_memory
from basis_sharing.errors import ModelError
from basis_sharing.results.benchmark import BenchmarkSettings
from pico import build, pico_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets the peak of a process")
MIB = 2**20


def settings(**changed):
    asked = {
        "prompt_tokens": 16,
        "new_tokens": 2,
        "batch_sizes": (1,),
        "repeats": 1,
        "compiled": False,
        "memory": True,
        "dtype": "auto",
        "device": "cpu",
        "seed": 0,
    }
    return BenchmarkSettings(**{**asked, **changed})


def saved(folder, vocab):
    model = build("gpt2", vocab_size=vocab, n_embd=64, n_layer=1, n_head=2, n_positions=512)
    model.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_fresh_process_tells_what_loading_and_running_take(tmp_path):
    small, large = saved(tmp_path / "small", 300), saved(tmp_path / "large", 200_000)
    assert can_measure()
    little, much = peak_memory(small, settings()), peak_memory(large, settings())
    weights = 4 * 64 * (200_000 - 300)
    assert much.loading - little.loading > 0.9 * weights
    assert much.running - little.running > 0.9 * weights
    assert little.loading < weights
    assert much.libraries > 50 * MIB
    assert much.device is None
    many = peak_memory(small, settings(batch_sizes=(1, 64), prompt_tokens=400))  # the largest batch counts
    assert many.running - little.running > 2 * 4 * 64 * (64 * 400 - 16)  # keys and values


def test_the_peak_can_be_set_back():
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    high = memory._peak()
    del block
    assert memory._reset() < high - 32 * MIB


def test_what_goes_wrong_in_the_process_is_told(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="does not exist; give a model folder"):
        peak_memory(str(tmp_path / "nowhere"), settings())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match=r"measures the memory of x failed \(it ended with code 1\).*--no-memory"):
        peak_memory("x", settings())


def test_measuring_here_returns_the_same_kind_of_numbers(tmp_path):
    found = measure_here(saved(tmp_path / "model", 300), settings())
    assert found.libraries > 0
    assert found.running >= 0
