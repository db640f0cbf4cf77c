"""Costs: what an option is said to cost is what the installed model stores and multiplies."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basis_sharing.costs.base import COSTS, Cost, numbers, shapes_of
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.models.sizes import memory_bytes, parameter_count
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.target import LIMITS
from basis_sharing.runtime.entries_basis_sharing import Factors, factor_products, factor_tensors
from basis_sharing.runtime.format_basis_sharing import Stored
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.options import FactorOptions
from basis_sharing.weightings.none import Unweighted
from pico import PICO

FORMS = ["plain", "pivoted"]
GROUPS = ["private", "roles", "layers", "both"]


def scope_of(decoder: Decoder, group: str) -> list[Projection]:
    first = decoder.projections[0]
    alike = [p for p in decoder.projections if p.input == first.input]
    return {
        "private": [first],
        "roles": [p for p in alike if p.block == 0],
        "layers": [p for p in alike if p.role == first.role][:3],
        "both": [p for p in alike if p.block < 2],
    }[group]


def installed(name: str, group: str, form: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, list[Any], Any]:
    """Return a pico model, that model with one entry carried out, its scope and the entry."""
    dense, model = PICO[name]().to(dtype), PICO[name]().to(dtype)
    decoder = describe(model)
    scope = scope_of(decoder, group)
    entry = Factors(members=tuple(p.name for p in scope), rank=9, form=form)
    plan = Plan(method="svd", ratio=0.1, entries=(entry,))
    (outcome,) = execute(model, decoder, plan, Unweighted())
    assert outcome.notes == ()
    install(model, outcome)
    return dense, model, scope, entry


def test_every_limit_has_its_cost() -> None:
    assert sorted(COSTS) == ["bytes", "multiplications", "parameters"]
    assert {cost.limit for cost in COSTS.values()} == set(LIMITS)
    assert all(COSTS[name].name == name for name in COSTS)


def test_formulas_on_paper() -> None:
    def counted(form: str, d_outs: tuple[int, ...], inputs: int = 1) -> tuple[int, int]:
        shapes = [(10, d_out) for d_out in d_outs]
        stored = sum(numbers(tensor) for tensor in factor_tensors(shapes, 4, form) if not tensor.buffer)
        return stored, sum(p.d_in * p.d_out * p.times for p in factor_products(shapes, 4, form, inputs))

    assert counted("plain", (30,)) == (160, 160)
    assert counted("pivoted", (30,)) == (144, 144)
    assert counted("plain", (20, 10)) == (160, 40 + 120)
    assert counted("plain", (20, 10), 2) == (160, 2 * 40 + 120)
    assert counted("pivoted", (20, 10)) == (144, 24 + 120)
    assert counted("pivoted", (20, 10), 2) == (144, 2 * 24 + 120)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "llama-untied-bias"])
def test_parameters_are_those_of_the_installed_model(name: str, group: str, form: str) -> None:
    dense, model, scope, entry = installed(name, group, form)
    cost = Parameters()
    assert parameter_count(dense) - parameter_count(model) == cost.dense(scope) - cost.of(scope, entry)
    weights = {
        id(parameter): parameter.numel()
        for p in scope
        for path, parameter in model.get_submodule(p.name).named_parameters()
        if not path.endswith("bias")
    }
    assert cost.of(scope, entry) == sum(weights.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bytes_are_those_of_parameters_and_buffers(name: str, group: str, form: str, dtype: torch.dtype) -> None:
    dense, model, scope, entry = installed(name, group, form, dtype)
    cost = Bytes(dtype.itemsize)
    assert memory_bytes(dense) - memory_bytes(model) == cost.dense(scope) - cost.of(scope, entry)
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for p in scope
        for path, tensor in [
            *model.get_submodule(p.name).named_parameters(),
            *model.get_submodule(p.name).named_buffers(),
        ]
        if not path.endswith("bias")
    }
    assert cost.of(scope, entry) == sum(tensors.values())


def multiplications_per_token(model: Any, tokens: int = 7) -> int:
    ids = torch.arange(tokens)[None]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(input_ids=ids, use_cache=False)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_multiplications_are_those_that_the_model_makes(name: str, group: str, form: str) -> None:
    """Counted by torch; what attention itself multiplies is the same before and after."""
    dense, model, scope, entry = installed(name, group, form)
    cost = Multiplications()
    saved = multiplications_per_token(dense) - multiplications_per_token(model)
    assert saved == cost.unit * 7 * (cost.dense(scope) - cost.of(scope, entry))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
def test_multiplications_are_those_of_the_products_in_the_modules(group: str, form: str) -> None:
    _, model, scope, entry = installed("llama", group, form)
    made: list[int] = []

    def hook(module: nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        made.append(inputs[0].numel() * module.out_features)

    for p in scope:
        for part in ("basis", "coeff"):
            model.get_submodule(f"{p.name}.{part}").register_forward_hook(hook)
    with torch.no_grad():
        model(input_ids=torch.arange(5)[None])
    assert sum(made) == 5 * Multiplications().of(scope, entry)


@pytest.mark.parametrize("name", ["llama", "llama-untied-bias", "gpt2", "phi3"])
def test_a_limit_of_the_whole_model_leaves_the_rest_to_the_projections(name: str) -> None:
    model = PICO[name]()
    decoder = describe(model)
    head = model.get_output_embeddings().weight.numel()
    wholes: dict[str, float] = {
        "parameters": parameter_count(model),
        "bytes": memory_bytes(model),
        "multiplications": 2 * (sum(p.d_in * p.d_out for p in decoder.projections) + head),
    }
    for kind, whole in wholes.items():
        cost = COSTS[kind](4)
        dense = cost.dense(decoder.projections)
        assert cost.budget(whole, model, decoder) == dense
        assert cost.whole(dense, model, decoder) == whole
        assert cost.whole(cost.budget(0.7 * whole, model, decoder), model, decoder) == pytest.approx(0.7 * whole)


def test_tensors_in_a_dtype_of_their_own_take_their_own_bytes() -> None:
    class Quantized:
        def stored(self, shapes: Sequence[tuple[int, int]]) -> tuple[Stored, ...]:
            return (Stored((8, 6), "int8"), Stored((8,), "float16"), Stored((3,), "int32", buffer=True), Stored((2,)))

        def products(self, shapes: Sequence[tuple[int, int]], inputs: int) -> tuple[Any, ...]:
            return ()

    assert Bytes(4).of((), Quantized()) == 48 + 16 + 12 + 8
    assert Bytes(2).of((), Quantized()) == 48 + 16 + 12 + 4
    assert Parameters().of((), Quantized()) == 48 + 8 + 2
    assert Multiplications().of((), Quantized()) == 0


@cache
def some_cost(name: str, itemsize: int) -> Cost:
    return COSTS[name](itemsize)


@given(
    kind=st.sampled_from(["parameters", "bytes", "multiplications"]),
    itemsize=st.sampled_from([2, 4]),
    form=st.sampled_from(FORMS),
    d_in=st.integers(2, 5000),
    d_outs=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    ranks=st.lists(st.integers(1, 4999), min_size=1, max_size=20),
)
def test_many_options_at_once_cost_what_each_of_them_costs(
    kind: str, itemsize: int, form: Any, d_in: int, d_outs: list[int], ranks: list[int]
) -> None:
    scope = [Projection(f"layers.{i}.up", i, "up", "mlp", d_in, d, False, False) for i, d in enumerate(d_outs)]
    options = FactorOptions(tuple(p.name for p in scope), np.array([min(rank, d_in) for rank in ranks]), form)
    cost = some_cost(kind, itemsize)
    at_once = cost.of(scope, options)
    one_by_one = [cost.of(scope, option) for option in options]
    assert np.asarray(at_once).tolist() == one_by_one
    assert all(isinstance(price, int) for price in one_by_one)
    assert shapes_of(scope) == tuple((d_in, d_out) for d_out in d_outs)
