"""What only a CUDA device can show; skipped elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch

import basis_sharing
from basis_sharing.benchmark.compiling import compiled_forward, compiled_models
from basis_sharing.benchmark.workloads import Decode
from basis_sharing.verbs.recover import recover
from pico import PICO, TEXT, pico_tokenizer, save_with_texts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("method", ["basis-sharing", "fwsvd", "asvd"])
def test_a_model_on_a_gpu_is_compressed_there(method: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Statistics are collected on the device, factors computed in fp64. " * 40)
    options = {"calibration": str(tmp_path / "text.txt"), "windows": 8, "length": 64, "calibration_dtype": "float32"}
    ids = torch.arange(24)[None]
    logits = []
    for device in ("cpu", "cuda"):
        model = PICO["llama"]().to(device)
        model, _ = basis_sharing.compress(model, 0.3, method=method, tokenizer=pico_tokenizer(), **options)
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        with torch.no_grad():
            logits.append(model(ids.to(device)).logits.cpu())
    assert torch.allclose(*logits, atol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"gradients": False}, {"method": "basis-sharing"}, {"method": "fwsvd"}])
def test_blocks_of_a_model_in_main_memory_visit_the_gpu(settings: dict[str, Any], tmp_path: Path) -> None:
    save_with_texts(tmp_path)
    options = {"calibration": str(tmp_path / "text.txt"), "windows": 8, "length": 64, "calibration_dtype": "float32"}
    options |= {"evaluate": (str(tmp_path / "other.txt"),), "ratio": 0.4, **settings}
    found = {}
    for device in ("cpu", "cuda"):
        model, result = basis_sharing.compress(str(tmp_path / "model"), device=device, **options)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        found[device] = result
    assert [e.entry.rank for e in found["cuda"].entries] == [e.entry.rank for e in found["cpu"].entries]
    before, after = (
        [getattr(result, name)[0].nats_per_token for result in found.values()]
        for name in ("perplexity_before", "perplexity_after")
    )
    assert before[0] == pytest.approx(before[1], rel=1e-3)
    assert after[0] == pytest.approx(after[1], rel=1e-2)


@pytest.mark.parametrize("settings", [{"refit": "anchored"}, {"refine": 0.1}])
def test_what_comes_after_the_plan_runs_on_the_gpu(settings: dict[str, Any], tmp_path: Path) -> None:
    save_with_texts(tmp_path)
    options = {"calibration": str(tmp_path / "text.txt"), "windows": 64, "length": 64, "calibration_dtype": "float32"}
    ids = torch.tensor(pico_tokenizer()(TEXT).input_ids[:512]).reshape(8, 64)
    original = PICO["llama"]().eval()
    error = {}
    for name, device, chosen in (
        ("plan", "cuda", {"refit": "never"}),
        ("cpu", "cpu", settings),
        ("cuda", "cuda", settings),
    ):
        model, _ = basis_sharing.compress(str(tmp_path / "model"), ratio=0.4, device=device, **options, **chosen)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        with torch.no_grad():
            error[name] = (model(ids).logits - original(ids).logits).square().mean().item()
    assert error["cuda"] < error["plan"]
    assert error["cuda"] == pytest.approx(error["cpu"], rel=0.05 if "refit" in settings else 0.3)


@pytest.mark.parametrize("preset", ["distill", "next-token", "paper"])
def test_recovery_runs_on_the_gpu(preset: str, tmp_path: Path) -> None:
    save_with_texts(tmp_path)
    text = str(tmp_path / "text.txt")
    options: dict[str, Any] = {"calibration": text, "length": 64}
    basis_sharing.compress(str(tmp_path / "model"), ratio=0.4, output=tmp_path / "small", windows=4, **options)
    rate = {"learning_rate": 1e-2} if preset == "paper" else {}
    options |= {"preset": preset, "epochs": 2, "evaluate": (text,), **rate}
    for device in ("cpu", "cuda"):
        report = recover(tmp_path / "small", tmp_path / device, device=device, **options).recovery
        assert report is not None
        assert report.loss_after < report.loss_before
        assert report.perplexity_after[0].perplexity < report.perplexity_before[0].perplexity


@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_is_recorded_in_graphs(batch: int) -> None:
    from torch._dynamo.utils import counters

    ids = torch.randint(0, 250, (batch, 24), generator=torch.Generator().manual_seed(0)).cuda()
    models = [PICO["llama"]().cuda(), PICO["qwen2"]().cuda()]
    tokens: dict[bool, list[torch.Tensor]] = {}
    counters.clear()
    with compiled_models(len(models)):
        for compiled in (False, True):
            runs = [Decode(m, ids, 8, compiled_forward(m, ids.device) if compiled else None) for m in models]
            for _ in range(2):
                for run in runs:
                    run.prepare()
                for _ in range(8):  # in turns, as a benchmark does it
                    for run in runs:
                        run.turn()
            tokens[compiled] = [run._next.clone() for run in runs]
    assert all(torch.equal(*pair) for pair in zip(tokens[False], tokens[True], strict=True))
    assert counters["inductor"]["cudagraph_skips"] == 0
