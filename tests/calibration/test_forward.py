"""The sweep against hooks on the whole model, for every family."""

from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import tiny
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import (
    MomentAccumulator,
    Moments,
    MomentStore,
    Statistics,
    add_product_fp32,
    add_split_product,
)
from basis_sharing.errors import NumericalError
from basis_sharing.models.decoder import describe
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Processes
from pico import PICO

BOTH = Statistics(gram=True, abs_sum=True)


def windows(count: int = 3, length: int = 48, vocabulary: int = 256) -> torch.Tensor:
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def expected_moments(model: Any, ids: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
    """Gram matrices by hooks on every projection during whole forward passes."""
    decoder = describe(model)
    found: dict[tuple[int, str], torch.Tensor] = {}
    handles = []
    for projection in decoder.projections:

        def hook(_: Any, args: Any, projection: Any = projection) -> None:
            x = args[0].flatten(0, -2).double()
            seen[projection.name] = seen.get(projection.name, 0) + x.T @ x

        handles.append(model.get_submodule(projection.name).register_forward_pre_hook(hook))
    seen: dict[str, Any] = {}
    for window in ids:
        model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    for projection in decoder.projections:
        key = (projection.block, projection.input)
        if key in found:
            assert torch.equal(found[key], seen[projection.name]), f"{projection.name} reads another input"
        found[key] = seen[projection.name]
    return found


@pytest.mark.parametrize("name", PICO)
def test_the_sweep_sees_what_the_whole_model_sees(name: str) -> None:
    model, ids = PICO[name](), windows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = expected_moments(model, ids)
    found = dict(sweep(model, describe(model), ids, BOTH, dtype=torch.float32))
    assert {(block, key) for block, moments in found.items() for key in moments} == set(expected)
    for (block, key), G in expected.items():
        moments = found[block][key]
        assert moments.tokens == ids.numel()
        assert moments.gram is not None
        assert moments.abs_sum is not None
        assert torch.equal(moments.gram, moments.gram.T)
        assert torch.allclose(moments.gram.double(), G, rtol=1e-4, atol=1e-4 * G.abs().max())
        assert (moments.abs_sum**2 <= ids.numel() * G.diagonal() * (1 + 1e-4)).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bf16_sweep_is_close() -> None:
    model, ids = PICO["llama"](), windows()
    exact = dict(sweep(model, describe(model), ids, BOTH, dtype=torch.float32))
    rough = dict(sweep(model, describe(model), ids, BOTH, dtype=torch.bfloat16))
    for block, moments in exact.items():
        for key, moment in moments.items():
            assert moment.gram is not None
            other = rough[block][key].gram
            assert other is not None
            assert (other - moment.gram).norm() < 0.05 * moment.gram.norm()
    assert next(model.parameters()).dtype == torch.float32


def test_progress_counts_every_window_of_every_block() -> None:
    model, ids, events = PICO["llama"](), windows(), []
    list(sweep(model, describe(model), ids, BOTH, dtype=torch.float32, progress=events.append))
    assert [event.done for event in events] == list(range(1, 5 * len(ids) + 1))
    assert {event.total for event in events} == {5 * len(ids)}


@pytest.mark.parametrize("statistics", [Statistics(gram=True), Statistics(abs_sum=True)])
def test_non_finite_activations_name_the_layer(statistics: Statistics) -> None:
    model = PICO["llama"]()
    model.model.layers[2].post_attention_layernorm.weight.data[3] = float("inf")
    with pytest.raises(NumericalError, match=r"model\.layers\.2\.mlp\.gate_proj contains NaN or infinity"):
        list(sweep(model, describe(model), windows(), statistics, dtype=torch.float32))


@pytest.mark.parametrize(
    "model_type",
    ["gemma3n_text", "gemma4_text", "deepseek_v4", "glm_moe_dsa", "inkling2_text", "falcon", "openai-gpt", "bamba"],
)
def test_blocks_alone_read_what_they_read_in_the_model(model_type: str) -> None:
    """Per-layer inputs, token ids, shared keys and values, several streams, chosen tokens, tuples, lists."""
    model = tiny(model_type)
    decoder, ids = describe(model), windows()
    expected = expected_moments(model, ids)
    for block, moments in sweep(model, decoder, ids, Statistics(gram=True), dtype=torch.float32):
        for name, moment in moments.items():
            assert moment.gram is not None
            error = (moment.gram - expected[block, name]).norm() / expected[block, name].norm().clamp_min(1e-9)
            assert error < 1e-4, (block, name)


def test_arguments_that_differ_between_windows_are_recorded_with_them(tmp_path: Path) -> None:
    model = tiny("gemma4_text")
    decoder, ids = describe(model), windows()
    poor = Machine(spare=0)
    ours = dict(sweep(model, decoder, ids, BOTH, dtype=torch.float32))
    theirs = dict(sweep(model, decoder, ids, BOTH, dtype=torch.float32, folder=tmp_path, machine=poor))
    assert list(tmp_path.glob("arguments-*"))
    for block, moments in ours.items():
        for name, moment in moments.items():
            gram = theirs[block][name].gram
            assert moment.gram is not None
            assert gram is not None
            assert torch.equal(moment.gram, gram)


def test_wide_inputs_are_added_up_in_tiles() -> None:
    x = torch.randn(40, 1100, generator=torch.Generator().manual_seed(0))
    accumulator = MomentAccumulator(1100, Statistics(gram=True), torch.device("cpu"))
    assert accumulator.add(x[:25])
    assert accumulator.add(x[25:])
    G = accumulator.finish(Processes()).gram
    assert G is not None
    assert torch.allclose(G, x.T @ x, atol=1e-3)


def test_split_products_keep_sixteen_bits() -> None:
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.double().T @ x.double()
    exact, split = torch.zeros(64, 64), torch.zeros(64, 64)
    add_product_fp32(exact, x.float(), x.float())
    add_split_product(split, x, x)
    assert (exact - expected).norm() < 1e-6 * expected.norm()
    assert (split - expected).norm() < 1e-5 * expected.norm()
    assert ((x.T @ x).double() - expected).norm() > 1e-4 * expected.norm()


def test_a_store_on_disk_returns_what_a_store_in_memory_returns(tmp_path: Any) -> None:
    memory, disk = MomentStore(), MomentStore(tmp_path)
    for block in range(3):
        moments = {
            "a": Moments(tokens=5, gram=torch.eye(4) * block, abs_sum=torch.arange(4.0).double()),
            "b": Moments(tokens=5, gram=torch.ones(2, 2)),
        }
        memory.put(block, moments)
        disk.put(block, moments)
    for keys in ([(0, "a")], [(0, "a"), (1, "a"), (2, "a")], [(2, "b")]):
        ours, theirs = memory.total(keys), disk.total(keys)
        assert ours.tokens == theirs.tokens == 5 * len(keys)
        assert torch.equal(ours.gram, theirs.gram)
        assert (ours.abs_sum is None) == (theirs.abs_sum is None)


@pytest.mark.parametrize("name", ["llama-untied-bias", "gpt2", "phi3", "opt"])
def test_row_fisher_is_the_sum_of_squared_gradients(name: str) -> None:
    model, ids = PICO[name](), windows(2)
    decoder = describe(model)
    found = row_fisher(model, decoder, ids)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    expected = {projection.name: 0.0 for projection in decoder.projections}
    for window in ids:
        model.zero_grad()
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for projection in decoder.projections:
            grad = model.get_submodule(projection.name).weight.grad.double()
            expected[projection.name] += (grad if projection.transposed else grad.T).square().sum(1)
    for projection in decoder.projections:
        assert torch.allclose(found[projection.name], expected[projection.name], rtol=1e-3, atol=1e-12)
