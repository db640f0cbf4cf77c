"""What only a CUDA device can show; skipped elsewhere."""

from pathlib import Path

import pytest
import torch

import basis_sharing
from pico import PICO, pico_tokenizer

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
