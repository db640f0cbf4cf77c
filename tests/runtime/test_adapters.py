"""PEFT's adapters on compressed models: exact on coefficients and private bases, refused on shared ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import basis_sharing
from pico import PICO, TEXT, pico_tokenizer


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(24)[None], use_cache=False).logits
    return found


@pytest.fixture(params=["basis-sharing", "svd-llm"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    (tmp_path / "text.txt").write_text(TEXT)
    settings: dict[str, Any] = {"tokenizer": pico_tokenizer(), "windows": 8, "length": 64}
    return basis_sharing.compress(
        PICO["llama"](), ratio=0.3, method=request.param, calibration=str(tmp_path / "text.txt"), **settings
    )[0]


def is_shared(model: Any) -> bool:
    return any(getattr(module, "sharers", 1) > 1 for module in model.modules())


@pytest.mark.parametrize("start", [False, "pissa", "olora"])
@pytest.mark.parametrize("targets", ["all-linear", ["basis", "coeff"]])
def test_adapters_on_every_factor(model: Any, targets: Any, start: Any) -> None:
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=start, task_type="CAUSAL_LM")
    if is_shared(model):
        with pytest.raises(ValueError, match=r"shared by 2 projections.*target_modules=\['coeff'\]"):
            get_peft_model(model, config)
        return
    original = logits(model)
    tuned = get_peft_model(model, config)
    before = logits(tuned)
    if start:
        assert torch.allclose(before, original, atol=1e-3)
    assert torch.allclose(logits(tuned.merge_and_unload()), before, atol=1e-3)


@pytest.mark.parametrize("start", [False, "pissa", "olora"])
@pytest.mark.parametrize("targets", [{"target_modules": ["coeff"]}, {"exclude_modules": ["basis"]}])
def test_adapters_on_coefficients_are_exact(model: Any, targets: dict[str, Any], start: Any) -> None:
    original = logits(model)
    config = LoraConfig(
        r=4, init_lora_weights=start, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **targets}
    )
    tuned = get_peft_model(model, config)
    before = logits(tuned)
    if start:
        assert torch.allclose(before, original, atol=1e-3)
    assert torch.allclose(logits(tuned.merge_and_unload()), before, atol=1e-3)


def test_a_shared_basis_is_not_copied_to_be_trained_by_itself() -> None:
    class Wrapper(torch.nn.Module):
        original_module = torch.nn.Linear(2, 2)

    from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear

    layer = FactorizedLinear(8, 2, 8, bias=False)
    layer.basis = torch.nn.Linear(8, 2, bias=False)
    layer.sharers = 3
    with pytest.raises(ValueError, match="shared by 3 projections"):
        layer.basis = Wrapper()
