import json

import pytest

from basis_sharing.results.benchmark import BenchmarkResult
from workspace import Workspace

SMALL = ("--prompt-tokens=16", "--new-tokens=2", "--batch-sizes=1,2", "--repeats=1", "--no-memory", "--device=cpu")
FAST = (*SMALL, "--no-compile")


@pytest.fixture
def space(tmp_path, capsys):
    return Workspace(tmp_path, capsys)


def test_one_model_twice_prints_tables_and_writes_a_file(space):
    assert space.run("bench", space.model, space.model, *FAST, "-o", space.out / "bench.json") == 0
    shown = space.capsys.readouterr().out
    assert "prompts of 16 random tokens, 2 new ones" in shown
    for words in ("prefill", "first token", "decode, batch 1", "decode, batch 2", "model (1)", "model (2)", "1.00 x"):
        assert words in shown
    assert "written to" in shown
    result = BenchmarkResult.read(space.out / "bench.json")
    assert [model.label for model in result.models] == ["model (1)", "model (2)"]
    assert "exists" in space.refused("bench", space.model, *FAST, "-o", space.out / "bench.json")


def test_json(space):
    assert space.run("bench", space.model, *FAST, "--json") == 0
    result = json.loads(space.capsys.readouterr().out)
    assert result["kind"] == "benchmark"
    assert result["settings"]["batch_sizes"] == [1, 2]
    assert [timing["speed"]["median"] for timing in result["models"][0]["timings"]] == [1.0] * 4


def test_mistakes(space):
    missing = space.root / "nowhere"
    assert f"{missing} does not exist" in space.refused("bench", space.model, missing)
    assert "--batch-sizes 1,0: every batch needs at least 1" in space.refused("bench", space.model, "--batch-sizes=1,0")
    assert "--batch-sizes 1,many: give whole numbers" in space.refused("bench", space.model, "--batch-sizes=1,many")
    assert "--batch-sizes : give whole numbers" in space.refused("bench", space.model, "--batch-sizes=")
    assert "reads at most 256 tokens" in space.refused("bench", space.model, "--prompt-tokens=512")
    assert "--repeats 0 is too small" in space.refused("bench", space.model, "--repeats=0")
    assert "unknown device 'gpu'" in space.refused("bench", space.model, "--device=gpu")
    assert "unknown dtype 'int8'" in space.refused("bench", space.model, "--dtype=int8")
    assert "unknown engine 'paper'" in space.refused("bench", space.model, "--engine=paper")
    assert "is a folder" in space.refused("bench", space.model, "-o", space.root)


def test_devices_and_compilers_that_are_not_there(space, monkeypatch):
    import torch
    import torch._inductor.config as inductor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no cuda device here" in space.refused("bench", space.model, "--device=cuda")
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert "needs a C++ compiler" in space.refused("bench", space.model, "--compile")
        assert space.run("bench", space.model, *SMALL) == 0
        assert "compiled execution was not measured" in " ".join(space.capsys.readouterr().out.split())


def test_an_engine_that_is_not_there(space, monkeypatch):
    monkeypatch.setattr("basis_sharing.benchmark.vllm_engine.find_spec", lambda name: None)
    told = space.refused("bench", space.model, "--engine=vllm", "--device=cpu")
    assert "--engine vllm needs vLLM in this environment, and it is not installed: pip install vllm" in told


def test_a_damaged_model_is_told_by_the_process_that_measures_memory(space):
    (space.model / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors" in space.refused("bench", space.model)
