"""The last check before a compressed model is published."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_sharing
from basis_sharing.errors import NumericalError
from basis_sharing.evaluation.check import CheckResult, RunWindow
from basis_sharing.models.decoder import describe
from basis_sharing.run.run import Run
from pico import PICO, TEXT, pico_tokenizer

SETTINGS: dict[str, Any] = {"tokenizer": pico_tokenizer(), "windows": 8, "length": 64, "calibration_dtype": "float32"}


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def scaled(what: str) -> Any:
    """Return a model in float16 whose activations are large and finite in one place."""
    model = PICO["llama-untied-bias"]()
    with torch.no_grad():
        for layer in model.model.layers:
            if what == "down":
                layer.mlp.up_proj.weight.mul_(8e3)
                layer.mlp.up_proj.bias.mul_(8e3)
                layer.mlp.down_proj.weight.div_(8e3)
            else:
                layer.input_layernorm.weight.mul_(1e4)
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                    projection.weight.div_(1e4)
    return model.half()


@pytest.mark.parametrize(("what", "method"), [("down", "basis-sharing"), ("norm", "auto")])
def test_factors_that_overflow_in_float16_are_named(what: str, method: str, text: str, tmp_path: Path) -> None:
    model = scaled(what)
    assert torch.isfinite(model(input_ids=torch.arange(24)[None]).logits).all()
    expected = r"^model\.layers\.\d\..*_proj of the compressed model computes NaN or infinity in float16"
    with pytest.raises(NumericalError, match=expected):
        basis_sharing.compress(model, ratio=0.1, method=method, calibration=text, output=tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_same_model_is_compressed_in_float32(text: str) -> None:
    small, _ = basis_sharing.compress(scaled("down").float(), ratio=0.1, calibration=text, **SETTINGS)
    assert torch.isfinite(small(input_ids=torch.arange(24)[None]).logits).all()


def test_an_original_that_overflows_itself_is_noted(text: str) -> None:
    model = scaled("down")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(5)
        model.model.layers[1].mlp.up_proj.bias.mul_(5)
    _, result = basis_sharing.compress(model, ratio=0.1, method="svd", calibration=text, **SETTINGS)
    assert any("the original itself computes NaN or infinity in float16 on random tokens" in n for n in result.notes)


@pytest.mark.parametrize("method", ["svd-llm", "basis-sharing", "auto"])
def test_attention_that_is_switched_off_stays_finite(method: str, text: str) -> None:
    model = PICO["llama"]()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    small, _ = basis_sharing.compress(model, ratio=0.2, method=method, calibration=text, **SETTINGS)
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())


def test_an_absurd_loss_stops_the_run() -> None:
    run = Run(PICO["llama"](), None, describe(PICO["llama"]()), describe(PICO["llama"]()))
    before, after = RunWindow(None, "before"), RunWindow(None, "after")
    before.run(run)
    logits = run.model(input_ids=before._window(run.model)).logits[0, :-1]
    targets = before._window(run.model)[0, 1:]
    assert before.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    after.loss = before.loss + 2 * math.log(260) - 0.1
    CheckResult(before, after).run(run)
    after.loss += 0.2
    with pytest.raises(NumericalError, match=r"nats per token, the original's \d"):
        CheckResult(before, after).run(run)


def test_a_block_without_a_culprit_is_named() -> None:
    model = PICO["llama"]()
    run = Run(model, None, describe(model), describe(model))
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight.fill_(math.inf)
    window = RunWindow(None, "after")
    window.run(run)
    assert window.culprit == "model.layers.2.self_attn.q_proj"
    assert not math.isfinite(window.loss)
