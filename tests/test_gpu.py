"""What only a CUDA device can show; skipped elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch

import basis_sharing
from pico import PICO, pico_tokenizer, save_with_texts

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
    assert [group.rank for group in found["cuda"].groups] == [group.rank for group in found["cpu"].groups]
    before, after = (
        [getattr(result, name)[0].nats_per_token for result in found.values()]
        for name in ("perplexity_before", "perplexity_after")
    )
    assert before[0] == pytest.approx(before[1], rel=1e-3)
    assert after[0] == pytest.approx(after[1], rel=1e-2)
