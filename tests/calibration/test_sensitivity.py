"""What an error of each projection costs, measured without gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.calibration.sensitivity import measure_sensitivity
from basis_sharing.linalg.truncation import Member, truncate
from basis_sharing.models.decoder import describe, weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.run.progress import Progress
from basis_sharing.weightings.sensitivity import Sensitivity
from pico import PICO

IDS = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))


def unscaled(model: Any, decoder: Decoder) -> Sensitivity:
    store = MomentStore()
    for block, moments in sweep(model, decoder, IDS, Statistics(gram=True), dtype=torch.float32):
        store.put(block, moments)
    return Sensitivity(moments=store, sensitivity={p.name: 1.0 for p in decoder.projections})


def members(model: Any, decoder: Decoder) -> Callable[[Projection], Member]:
    weighting = unscaled(model, decoder)
    return lambda projection: weighting.problem(model, [projection])[0]


def measured(model: Any, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    decoder = describe(model)
    return measure_sensitivity(model, decoder, members(model, decoder), IDS, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "phi3", "mixtral", "opt"])
def test_every_projection_has_a_positive_number_and_the_weights_are_put_back(name: str, dtype: torch.dtype) -> None:
    model = PICO[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measured(model, dtype)
    assert set(found) == {p.name for p in describe(model).projections}
    assert all(0 < value < float("inf") for value in found.values())
    after = model.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(value, after[key]) for key, value in before.items())
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_the_divergence_of_the_whole_model_per_unit_of_output_error(name: str) -> None:
    """Against the model itself with the truncated weight, all blocks run, and the error counted token by token."""
    model = PICO[name]()
    decoder = describe(model)
    member_of = members(model, decoder)
    found = measure_sensitivity(model, decoder, member_of, IDS, dtype=torch.float32)
    ids = IDS[:2]
    reference = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    for projection in decoder.projections[:: len(decoder.projections) // 6]:
        truncated = truncate([member_of(projection)])
        rank = min(projection.d_in, projection.d_out) // 2
        approximation = truncated.basis[:, :rank] @ next(truncated.coefficients(rank))
        original = weight(model, projection).clone()
        weight(model, projection).copy_(approximation)
        changed = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        weight(model, projection).copy_(original)
        divergence = (reference.exp() * (reference - changed)).sum(-1).mean().item()
        assert found[projection.name] == pytest.approx(divergence / truncated.losses[rank].item(), rel=1e-2)


def test_what_is_read_with_less_weight_matters_less() -> None:
    model = PICO["llama"]()
    before = measured(model)
    layer = model.model.layers[1]
    layer.mlp.down_proj.weight.data *= 0.1
    after = measured(model)
    prefix = "model.layers.1.mlp."
    for name in ("gate_proj", "up_proj"):
        assert after[prefix + name] < 0.1 * before[prefix + name]
    layer.mlp.down_proj.weight.data.zero_()
    unread = measured(model)
    for name in ("gate_proj", "up_proj"):
        assert unread[prefix + name] < 1e-4 * before[prefix + name]


def test_an_error_in_the_measurement_leaves_the_weights_as_they_were() -> None:
    model = PICO["llama"]()
    decoder = describe(model)
    member_of = members(model, decoder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise RuntimeError("interrupted")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        measure_sensitivity(model, decoder, member_of, IDS, dtype=torch.float32)
    handle.remove()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_events_name_every_projection_once() -> None:
    model = PICO["gpt2"]()
    decoder = describe(model)
    events: list[Progress] = []
    measure_sensitivity(model, decoder, members(model, decoder), IDS, dtype=torch.float32, progress=events.append)
    assert [event.done for event in events] == list(range(1, len(decoder.projections) + 1))


def test_losses_scale_with_it() -> None:
    model = PICO["llama"]()
    decoder = describe(model)
    weighting = unscaled(model, decoder)
    projection = decoder.projections[3]
    scaled = replace(weighting, sensitivity={**weighting.sensitivity, projection.name: 1e-3})
    ours, theirs = (truncate(w.problem(model, [projection])).losses for w in (weighting, scaled))
    assert torch.allclose(theirs, 1e-3 * ours, rtol=1e-8, atol=1e-12 * ours[0])
