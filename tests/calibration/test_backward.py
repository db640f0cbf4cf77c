"""The backward sweep against plain automatic differentiation of the whole model."""

from collections import namedtuple
from typing import Any

import pytest
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import Moments
from basis_sharing.errors import CorpusError, NumericalError
from basis_sharing.models.decoder import describe
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import Progress
from pico import PICO

FAMILIES = ("llama", "gpt2", "gemma3", "phi3", "mixtral", "opt")


def windows(count: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(0))


def swept(model: Any, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[int, dict[str, Moments]]:
    return dict(backward_sweep(model, describe(model), ids, dtype=dtype))


def expected_moments(model: Any, ids: torch.Tensor) -> tuple[dict[tuple[int, str], Any], dict[str, Any]]:
    """Moments of inputs and of gradients, by hooks during whole passes forward and backward."""
    decoder = describe(model)
    inputs: dict[tuple[int, str], Any] = {}
    gradients: dict[str, Any] = {}
    handles = []
    for projection in decoder.projections:

        def hook(_: Any, args: Any, output: torch.Tensor, p: Any = projection) -> None:
            x = args[0].detach().flatten(0, -2).double()
            seen[p.name] = seen.get(p.name, 0) + x.T @ x

            def add(gradient: torch.Tensor) -> None:
                g = gradient.flatten(0, -2).double()
                gradients[p.name] = gradients.get(p.name, 0) + g.T @ g

            output.register_hook(add)

        handles.append(model.get_submodule(projection.name).register_forward_hook(hook))
    seen: dict[str, Any] = {}
    for window in ids:
        logits = model(input_ids=window[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    for projection in decoder.projections:
        inputs[projection.block, projection.input] = seen[projection.name]
    return inputs, gradients


def assert_close(found: torch.Tensor | None, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found is not None
    assert torch.equal(found, found.T)
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_moments_are_those_of_plain_autograd(name: str) -> None:
    model, ids = PICO[name](), windows()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    inputs, gradients = expected_moments(model, ids)
    found = swept(model, ids)

    decoder = describe(model)
    assert list(found) == list(reversed(range(len(decoder.blocks))))
    assert {(block, key) for block, moments in found.items() for key in moments} == {
        *inputs,
        *((p.block, p.name) for p in decoder.projections),
        *((e.block, key) for e in decoder.experts for side in (e.reads, e.writes) for key in (side.name, side.input)),
        *((e.block, f"{e.name}.{name}") for e in decoder.experts for name in e.sizes),
    }
    for (block, key), G in inputs.items():
        assert found[block][key].tokens == ids.numel()
        assert_close(found[block][key].gram, G)
    for projection in decoder.projections:
        moments = found[projection.block][projection.name]
        assert moments.tokens == ids.numel()
        assert_close(moments.gradient, gradients[projection.name])

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == trainable
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )


@pytest.mark.parametrize("length", [2, 5, 6, 7, 11])
def test_long_windows_meet_the_head_in_pieces(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_sharing.blocks.states.POSITIONS", 5)
    model, ids = PICO["llama"](), windows(2, length)
    inputs, gradients = expected_moments(model, ids)
    found = swept(model, ids)
    for (block, key), G in inputs.items():
        assert_close(found[block][key].gram, G)
    for name, H in gradients.items():
        assert_close(found[int(name.split(".")[2])][name].gradient, H)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_in_bf16_it_is_close_and_the_weights_stay_as_they_are(name: str) -> None:
    model, ids = PICO[name](), windows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact, rough = swept(model, ids), swept(model, ids, torch.bfloat16)
    for block, moments in exact.items():
        for key, moment in moments.items():
            for ours, theirs in ((moment.gram, rough[block][key].gram), (moment.gradient, rough[block][key].gradient)):
                assert (ours is None) == (theirs is None)
                if ours is not None and theirs is not None:
                    assert (theirs - ours).norm() < 0.1 * ours.norm()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tape_on_disk_gives_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model, ids = PICO["gpt2"](), windows()
    memory = swept(model, ids, dtype)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes = []
    disk = {}
    for block, moments in backward_sweep(model, describe(model), ids, dtype=dtype, machine=Machine(spare=0)):
        disk[block] = moments
        sizes += [file.stat().st_size for file in tmp_path.rglob("tape*")]
    itemsize = torch.empty(0, dtype=dtype).element_size()
    assert set(sizes) == {(1 + 5) * ids.numel() * 48 * itemsize}
    assert not list(tmp_path.iterdir())
    for block, moments in memory.items():
        for key, moment in moments.items():
            for ours, theirs in ((moment.gram, disk[block][key].gram), (moment.gradient, disk[block][key].gradient)):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


def test_too_little_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = PICO["llama"](), windows()
    monkeypatch.setattr("psutil.disk_usage", lambda _: namedtuple("usage", "free")(5 * ids.numel() * 64 * 4 - 1))
    with pytest.raises(CorpusError, match=r"block inputs.*--windows.*--no-gradients"):
        dict(backward_sweep(model, describe(model), ids, dtype=torch.float32, machine=Machine(spare=0)))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("block", [0, 2, 4])
def test_non_finite_weights_name_their_block(block: int) -> None:
    model, ids = PICO["llama"](), windows()
    model.model.layers[block].mlp.gate_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(NumericalError, match=rf"what model\.layers\.{block} computes contains NaN"):
        swept(model, ids)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_stopping_early_leaves_the_model_as_it_was() -> None:
    model, ids = PICO["llama"](), windows()
    blocks = backward_sweep(model, describe(model), ids, dtype=torch.float32)
    next(blocks)
    blocks.close()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_counts_every_window_of_every_block() -> None:
    model, ids = PICO["llama"](), windows()
    events: list[Progress] = []
    list(backward_sweep(model, describe(model), ids, dtype=torch.float32, progress=events.append))
    for stage, total in (("recording block inputs", 15), ("measuring the loss", 3), ("measuring gradients", 15)):
        mine = [event for event in events if event.stage == stage]
        assert [event.done for event in mine] == list(range(1, total + 1))
        assert {event.total for event in mine} == {total}


def test_a_model_in_no_grad_mode_and_inference_is_no_obstacle() -> None:
    model, ids = PICO["llama"](), windows(1)
    expected = swept(model, ids)
    with torch.no_grad():
        found = swept(model, ids)
    for block, moments in expected.items():
        for key, moment in moments.items():
            assert moment.gradient is None or torch.equal(moment.gradient, found[block][key].gradient)


def test_a_model_that_comes_from_training_with_checkpointing_gives_the_same() -> None:
    found = []
    for checkpointing in (False, True):
        model = PICO["llama"]()
        if checkpointing:
            model.gradient_checkpointing_enable()
        moments = dict(backward_sweep(model, describe(model), windows(), dtype=torch.float32))
        found.append({(block, name): m.gradient for block, own in moments.items() for name, m in own.items()})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        other = found[1][key]
        assert (gradient is None) == (other is None)
        assert gradient is None or other is None or torch.equal(gradient, other)


def test_a_projection_without_a_gradient_is_named() -> None:
    model = PICO["llama"]()
    projection = model.model.layers[1].self_attn.k_proj
    projection.forward = lambda x: torch.nn.functional.linear(x, projection.weight).detach()
    with pytest.raises(NumericalError, match=r"layers\.1\.self_attn\.k_proj receives no gradient.*--no-gradients"):
        list(backward_sweep(model, describe(model), windows(), dtype=torch.float32))
