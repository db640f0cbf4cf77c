"""vLLM as an engine: what is asked of it, and what goes wrong; without vLLM, on a package that stands in for it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import basis_sharing
from basis_sharing.benchmark.vllm_engine import Served, Vllm, cache_bytes, check_vllm
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkSettings
from pico import PICO, build, pico_tokenizer, save_pico

STAND_IN = """
import json, os, time
from types import SimpleNamespace
from vllm import platforms

__version__ = "9.9"


def SamplingParams(**asked):
    return SimpleNamespace(**asked)


class LLM:
    def __init__(self, model, **asked):
        if "broken" in model:
            raise ValueError("no such architecture.")
        print("some words of its own")
        self.log = open(os.environ["STAND_IN_LOG"], "a")
        self.note({"model": model, "threads": os.environ["OMP_NUM_THREADS"], **asked})

    def note(self, what):
        self.log.write(json.dumps(what) + "\\n")
        self.log.flush()

    def generate(self, prompts, sampling, use_tqdm):
        start = time.monotonic()
        self.note({"batch": len(prompts), "tokens": sampling.max_tokens, "prompt": prompts[0]["prompt_token_ids"]})
        if sampling.max_tokens == 13:
            raise RuntimeError("out of memory")
        last = start + 0.25 + 0.5 * (sampling.max_tokens - 1)
        metrics = SimpleNamespace(first_token_ts=start + 0.25, last_token_ts=last)
        return [SimpleNamespace(metrics=metrics) for _ in prompts]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package ``vllm`` in reach of the processes; return the file of what it was asked."""
    package = tmp_path / "packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "platforms.py").write_text(
        "from types import SimpleNamespace\ncurrent_platform = SimpleNamespace(device_type='cpu')\n"
    )
    source = Path(basis_sharing.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{source}")
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "asked.jsonl"))
    monkeypatch.setattr("basis_sharing.benchmark.vllm_engine.find_spec", lambda name: object())
    return tmp_path / "asked.jsonl"


def settings(**changes: object) -> BenchmarkSettings:
    asked = {
        "prompt_tokens": 6,
        "new_tokens": 4,
        "batch_sizes": (1, 2),
        "repeats": 1,
        "compiled": True,
        "memory": False,
        "dtype": "auto",
        "device": "cpu",
        "seed": 0,
        "engine": "vllm",
    }
    return BenchmarkSettings.model_validate({**asked, **changes})


def engine(tmp_path: Path, *names: str, **changes: object) -> Vllm:
    served = [Served(name, name, "float32", 2**20) for name in names]
    return Vllm(served, torch.arange(12).reshape(2, 6), settings(**changes), 1, tmp_path)


def asked(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_first_token_and_the_others_are_told_apart(stand_in: Path, tmp_path: Path) -> None:
    with engine(tmp_path, "a", "b") as running:
        rounds = running.rounds()
        assert [(r.workload, r.execution, r.batch) for r in rounds] == [
            ("first token", "vllm", 1),
            ("first token", "vllm", 2),
            ("decode", "vllm", 1),
            ("decode", "vllm", 2),
        ]
        for round_, seconds in zip(rounds, (0.25, 0.25, 0.5, 0.5), strict=True):
            with running.contestants(round_) as contestants:
                for contestant in contestants:
                    contestant.prepare()
                    assert contestant.turn() == pytest.approx(seconds, abs=1e-3)
        assert running.version == "9.9"
    starts = [entry for entry in asked(stand_in) if "model" in entry]
    assert [start["model"] for start in starts] == ["a", "b"]  # once each
    assert starts[0]["max_model_len"] == 11
    assert starts[0]["max_num_seqs"] == 2
    assert starts[0]["enforce_eager"] is False
    assert starts[0]["dtype"] == "float32"
    assert starts[0]["threads"] == "1"
    assert starts[0]["gpu_memory_utilization"] == 0.45
    runs = [(entry["batch"], entry["tokens"]) for entry in asked(stand_in) if "batch" in entry]
    assert runs == [(1, 1), (1, 1), (2, 1), (2, 1), (1, 5), (1, 5), (2, 5), (2, 5)]
    assert asked(stand_in)[-1]["prompt"] == [0, 1, 2, 3, 4, 5]


def test_what_goes_wrong_is_said(stand_in: Path, tmp_path: Path) -> None:
    def run(name: str, **changes: object) -> None:
        with engine(tmp_path, name, **changes) as running, running.contestants(running.rounds()[-1]) as (contestant,):
            contestant.prepare()
            contestant.turn()

    with pytest.raises(ModelError, match=r"vLLM failed on broken \(ValueError: no such architecture\): leave out"):
        run("broken")
    with pytest.raises(ModelError, match=r"vLLM failed on a \(RuntimeError: out of memory\)"):
        run("a", new_tokens=12)
    with pytest.raises(ModelError, match="vLLM in this environment is made for cpu, and cuda was asked for"):
        run("a", device="cuda")


def test_where_vllm_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_sharing.benchmark.vllm_engine.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"--engine vllm needs vLLM .* not installed: pip install vllm"):
        check_vllm("cpu")
    monkeypatch.setattr("basis_sharing.benchmark.vllm_engine.find_spec", lambda name: object())
    check_vllm("cuda")
    with pytest.raises(RecipeError, match="--engine vllm runs on cpu or cuda, not on mps"):
        check_vllm("mps")


def test_bytes_of_keys_and_values() -> None:
    assert cache_bytes(PICO["llama"]()) == 2 * 5 * 32 * 4
    model = build("gpt2", vocab_size=260, n_embd=48, n_layer=3, n_head=4, n_positions=64)
    assert cache_bytes(model.to(torch.bfloat16)) == 2 * 3 * 48 * 2


def test_models_take_turns_in_vllm(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_sharing.benchmark.turns._SECONDS_PER_REPEAT", 0.0)
    dense = save_pico("llama", tmp_path / "dense")
    result = basis_sharing.bench(
        [dense, dense],
        prompt_tokens=16,
        new_tokens=4,
        batch_sizes=(1, 2),
        repeats=2,
        precision=None,
        compile=False,
        engine="vllm",
        device="cpu",
        threads=1,
    )
    assert result.versions["vllm"] == "9.9"
    assert not result.settings.memory
    assert result.settings.engine == "vllm"
    for model in result.models:
        assert isinstance(model, BenchmarkedModel)
        assert model.memory is None
        assert model.work.products_per_step == 5 * 7 + 1
        assert [round(timing.time.median, 2) for timing in model.timings] == [0.25, 0.25, 0.5, 0.5]
        assert [timing.execution for timing in model.timings] == ["vllm"] * 4
        assert model.timings[0].warm_up > model.timings[2].warm_up  # it includes the start
    models = [entry["model"] for entry in asked(stand_in) if "model" in entry]
    assert models == [str(dense), str(dense)]
    assert all(entry["enforce_eager"] for entry in asked(stand_in) if "model" in entry)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make vllm")
def test_vllm_itself(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "other"):
        # Heads are 32 wide, the least that vLLM computes on a CPU.
        model = build(
            "llama",
            vocab_size=260,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
        )
        for part in (model, pico_tokenizer()):
            part.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    result = basis_sharing.bench(
        folders,
        prompt_tokens=16,
        new_tokens=4,
        batch_sizes=(1, 2),
        repeats=2,
        precision=None,
        compile=False,
        engine="vllm",
        device="cpu",
        threads=1,
    )
    for model in result.models:
        assert all(second > 0 for timing in model.timings for second in timing.seconds)
    assert result.versions["vllm"]
