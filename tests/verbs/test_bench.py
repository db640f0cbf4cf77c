import json
import shutil
import subprocess
import sys

import pytest
import torch

import basis_sharing
from basis_sharing.benchmark.turns import paired_speed, spread
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.benchmark import BenchmarkResult, PeakMemory
from basis_sharing.verbs import bench as story
from pico import save_pico

FAST = {
    "prompt_tokens": 24,
    "new_tokens": 3,
    "batch_sizes": (1, 2),
    "repeats": 2,
    "precision": None,
    "memory": False,
    "compile": False,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def quick_and_idle(monkeypatch):
    monkeypatch.setattr("basis_sharing.benchmark.turns._SECONDS_PER_REPEAT", 0.0)
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.1, 0.1, 0.1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    text = root / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    dense, small = save_pico("llama", root / "dense"), root / "small"
    basis_sharing.compress(dense, 0.3, method="svd-llm", output=small, calibration=str(text), windows=4, length=64)
    return dense, small


def test_everything_is_measured(folders, tmp_path):
    dense, small = folders
    events = []
    result = basis_sharing.bench(folders, **FAST, progress=events.append)
    one, other = result.models
    assert (one.model, one.label, other.label) == (str(dense), "dense", "small")
    for model in result.models:
        shown = [(t.workload, t.execution, t.batch) for t in model.timings]
        assert shown == [
            ("prefill", "eager", 1),
            ("first token", "eager", 1),
            ("decode", "eager", 1),
            ("decode", "eager", 2),
        ]
        assert model.dtype == "float32"
        assert model.memory is None
        assert model.predicted is None
        assert all(timing.warm_up > min(timing.seconds) for timing in model.timings)
    for mine, reference in zip(other.timings, one.timings, strict=True):
        assert len(mine.seconds) == 2
        assert min(mine.seconds) > 0
        assert mine.time == spread(mine.seconds)
        assert mine.speed == paired_speed(reference.seconds, mine.seconds)
        assert mine.ideal_speed > 1
        assert (reference.speed.median, reference.ideal_speed) == (1.0, 1.0)
    decode = other.timings[2]
    assert decode.ideal_speed == one.work.weight_bytes_per_step / other.work.weight_bytes_per_step
    prefill = other.timings[0]
    assert prefill.ideal_speed == one.work.prefill_multiply_adds / other.work.prefill_multiply_adds
    assert other.parameters < one.parameters
    assert 4 * other.parameters <= other.bytes_in_memory < one.bytes_in_memory
    assert other.bytes_on_disk == (small / "model.safetensors").stat().st_size
    assert result.settings.device == "cpu"
    assert result.threads == torch.get_num_threads()
    assert result.notes == ()
    last = events[-1]
    assert (last.stage, last.done, last.total, last.unit) == ("measuring speed", 12, 12, "repeats")
    result.write(tmp_path / "bench.json")
    assert BenchmarkResult.read(tmp_path / "bench.json") == result


def test_the_prompt_is_as_long_as_the_models_can_read(folders, monkeypatch):
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    result = basis_sharing.bench(folders, memory=False, compile=False, new_tokens=40)
    assert result.settings.prompt_tokens == 256 - 40


def test_prompts_are_seeded_and_fit_every_vocabulary(folders, monkeypatch):
    prompts = []
    monkeypatch.setattr(story, "PyTorch", lambda models, ids, settings: prompts.append(ids))
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    for seed in (0, 0, 1):
        basis_sharing.bench(folders, **FAST, seed=seed)
    assert torch.equal(prompts[0], prompts[1])
    assert not torch.equal(prompts[0], prompts[2])
    assert prompts[0].shape == (2, 24)
    assert prompts[0].max() < 260


def test_threads_are_set_for_the_measurement_only(folders, monkeypatch):
    seen = []
    monkeypatch.setattr(
        story, "time_rounds", lambda engine, works, *_: [seen.append(torch.get_num_threads()) or () for _ in works]
    )
    before = torch.get_num_threads()
    assert basis_sharing.bench(folders[:1], **FAST, threads=before + 1).threads == before + 1
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_memory_is_measured_for_every_model(folders, monkeypatch):
    peak = PeakMemory(libraries=1, loading=2, running=3, device=None)
    asked = []
    monkeypatch.setattr(story, "peak_memory", lambda name, settings: asked.append((name, settings.batch_sizes)) or peak)
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    monkeypatch.setattr(story, "can_measure", lambda: True)
    result = basis_sharing.bench(folders, **{**FAST, "memory": True})
    assert [model.memory for model in result.models] == [peak, peak]
    assert asked == [(str(folder), (1, 2)) for folder in folders]
    monkeypatch.setattr(story, "can_measure", lambda: False)
    result = basis_sharing.bench(folders, **{**FAST, "memory": True})
    assert [model.memory for model in result.models] == [None, None]
    assert result.notes == ("this platform does not report the peak memory of a process, so it was not measured",)


def test_notes_on_dtypes_and_experts(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    half = save_pico("mixtral", tmp_path / "half", dtype=torch.bfloat16)
    notes = basis_sharing.bench([folders[0], half], **FAST).notes
    assert "different dtypes (float32, bfloat16): pass --dtype" in notes[0]
    assert "counts the experts of one token" in notes[1]
    assert len(basis_sharing.bench([folders[0], half], **FAST, dtype="float32").notes) == 1


def test_a_busy_machine_is_noted(folders, monkeypatch):
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    monkeypatch.setattr("psutil.getloadavg", lambda: (3.21, 0.1, 0.1))
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    (note,) = basis_sharing.bench(folders, **FAST).notes
    assert note.startswith("the machine was busy when this began (load 3.2 on 4 processors)")
    monkeypatch.setattr("psutil.cpu_count", lambda: 8)
    assert basis_sharing.bench(folders, **FAST).notes == ()


def test_repeats_go_on_until_speeds_settle(folders):
    events = []
    result = basis_sharing.bench(folders, **{**FAST, "precision": "0.000001%"}, progress=events.append)
    assert result.settings.precision == 1e-8
    for timing in result.models[1].timings:
        assert len(timing.seconds) == 8
        assert timing.uncertainty > 1e-8
    assert all(event.done <= event.total for event in events)
    assert (events[-1].done, events[-1].total) == (36, 36)
    (note,) = result.notes
    assert note.startswith("after 8 repeats a speed (")
    assert "more than the 0.0% asked for" in note
    settled = basis_sharing.bench(folders, **{**FAST, "precision": 0.999})
    assert all(len(timing.seconds) in range(2, 9) for timing in settled.models[1].timings)
    assert all(timing.uncertainty is None for timing in settled.models[0].timings)


def test_precision_may_be_off_by_name(folders, monkeypatch):
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    assert basis_sharing.bench(folders, **{**FAST, "precision": "off"}).settings.precision is None


def test_names_stay_apart(tmp_path):
    assert story._labels(["a/model", "b/small"]) == ["model", "small"]
    assert story._labels(["a/model", "b/model"]) == ["a/model", "b/model"]
    assert story._labels(["a/model", "b/small", "a/model"]) == ["model (1)", "small", "model (2)"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batch_sizes": (1, 0)}, "--batch-sizes 1,0: every batch needs at least 1 sequence"),
        ({"batch_sizes": ()}, r"--batch-sizes \(none\)"),
        ({"repeats": 0}, "--repeats 0 is too small"),
        ({"new_tokens": 0}, "--new-tokens 0 is too small"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0 is too small"),
        ({"threads": 0}, "--threads 0 is too small"),
        ({"precision": "few"}, "--precision 'few' is neither a fraction nor a percentage"),
        ({"precision": "0%"}, "--precision 0% is no use: give a fraction between 0 and 1, e.g. 2%, or off"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"engine": "paper"}, "unknown engine 'paper': choose from pytorch, vllm, executorch, mlx, onnx, openvino"),
        ({"device": "tpu"}, "unknown device 'tpu': choose from auto, cpu, cuda, mps"),
        (
            {"prompt_tokens": 254},
            "reads at most 256 tokens, and a prompt of 254 with 3 new tokens has 257: lower --prompt-tokens",
        ),
        ({"new_tokens": 256, "prompt_tokens": None}, "a prompt of 1 with 256 new tokens has 257"),
    ],
)
def test_wrong_settings(folders, changed, sentence):
    with pytest.raises(RecipeError, match=sentence):
        basis_sharing.bench(folders, **{**FAST, **changed})


def test_no_model():
    with pytest.raises(RecipeError, match="no model was given"):
        basis_sharing.bench([])


def test_a_device_that_is_not_there(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="PyTorch finds no cuda device here: pass --device cpu"):
        basis_sharing.bench(folders, **{**FAST, "device": "cuda"})


def test_no_compiler(folders, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    # Its own patch: what monkeypatch puts back, PyTorch takes for deleted, and nothing compiles in this process again.
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(
            RecipeError, match=r"--compile needs a C\+\+ compiler, and PyTorch finds none: .* or pass --no-compile"
        ):
            basis_sharing.bench(folders, **{**FAST, "compile": True})
        result = basis_sharing.bench(folders, **{**FAST, "compile": None})
        assert not result.settings.compiled
        assert result.notes == ("PyTorch finds no C++ compiler, so compiled execution was not measured",)
        assert basis_sharing.bench(folders, **FAST).notes == ()
    assert basis_sharing.bench(folders, **{**FAST, "compile": None}).settings.compiled


def test_what_does_not_compile_is_told(folders, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such luck\nsecond line")

    monkeypatch.setattr(story, "finds_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(ModelError, match=r"^compiling failed \(no such luck\): pass --no-compile.$"):
        basis_sharing.bench(folders, **{**FAST, "compile": True})


def test_compiled_execution_stays_compiled(tmp_path, monkeypatch):
    compile_, graphs = torch.compile, []
    backend = lambda module, _: graphs.append(module) or module.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compile_(forward, backend=backend))
    monkeypatch.setattr(story, "finds_compiler", lambda: True)
    dense, sliding = (save_pico(name, tmp_path / name, blocks=2) for name in ("llama", "mistral"))
    basis_sharing.compress(dense, 0.3, method="svd", output=tmp_path / "small")
    few = {**FAST, "batch_sizes": (1,), "repeats": 1, "new_tokens": 6, "compile": None}
    result = basis_sharing.bench([tmp_path / "small", sliding], **few)
    assert result.settings.compiled
    for model in result.models:
        compiled = [timing for timing in model.timings if timing.execution == "compiled"]
        assert [(timing.workload, timing.batch) for timing in compiled] == [("prefill", 1), ("decode", 1)]
    assert len(graphs) <= 2 * 2 + 2  # one for each model and workload, two more where lengths turn out to change


def predicting(folder, new, speed):
    """Return a copy of a folder whose plan predicted this speed."""
    shutil.copytree(folder, new)
    config = json.loads((new / "config.json").read_text())
    config["quantization_config"]["provenance"]["predicted_speed"] = speed
    (new / "config.json").write_text(json.dumps(config))
    return new


def test_a_prediction_stands_beside_what_was_measured(folders, tmp_path, monkeypatch):
    both = {"prefill": {"tokens": 24, "speed": 1.3}, "decode": {"batch": 2, "speed": 1.1}}
    small = predicting(folders[1], tmp_path / "small", both)
    result = basis_sharing.bench([folders[0], small], **FAST)
    model = result.models[1]
    assert [model.predicted_speed(timing, 24) for timing in model.timings] == [1.3, 1.3, None, 1.1]
    assert result.models[0].predicted is None
    assert result.notes == ()
    monkeypatch.setattr(story, "time_rounds", lambda engine, works, *_: [() for _ in works])
    other = {"prefill": {"tokens": 2048, "speed": 1.3}, "decode": {"batch": 64, "speed": 1.1}}
    (note,) = basis_sharing.bench([folders[0], predicting(folders[1], tmp_path / "other", other)], **FAST).notes
    assert note == (
        "the plan of other predicted the speed of a prefill of 2048 tokens (--prompt-tokens) and of decoding at batch "
        "64 (--batch-sizes), which was not measured"
    )
    with pytest.raises(ModelError, match=r'damaged prediction \("predicted_speed"\): remove it, or compress again'):
        basis_sharing.bench([predicting(folders[1], tmp_path / "damaged", {"prefill": 1.3})], **FAST)


def test_it_is_lazy():
    code = "import sys, basis_sharing; 'bench' in dir(basis_sharing); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
