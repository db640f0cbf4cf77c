"""The dense form of a compressed model: native classes, the compressed model's numbers."""

from pathlib import Path

import pytest
import torch

import basis_sharing
from basis_sharing.exports.dense import dense_model
from pico import PICO, save_pico

IDS = torch.arange(24)[None]
SETTINGS = {"method": "basis-sharing", "windows": 6, "length": 64, "calibration_dtype": "float32"}


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("name", list(PICO))
def test_it_computes_the_same_with_native_classes(name: str, form: str, tmp_path: Path) -> None:
    compressed, _ = basis_sharing.compress(save_pico(name, tmp_path / "model"), ratio=0.3, form=form, **SETTINGS)
    dense = dense_model(compressed)
    assert type(dense) is type(PICO[name]())
    shapes = {key: value.shape for key, value in PICO[name]().state_dict().items()}
    assert {key: value.shape for key, value in dense.state_dict().items()} == shapes
    with torch.no_grad():
        torch.testing.assert_close(dense(IDS).logits, compressed(IDS).logits, rtol=1e-3, atol=1e-4)
