"""Inputs in order: one order for factors that read one input, neurons in the order of down, bases side by side."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from basis_sharing.models.decoder import describe
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.run import Run
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.runtime.surgery import declare_compressed
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors import common_order
from basis_sharing.treatments.factors.ordering import OrderInputs
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.treatments.stage import Execute, Executed
from basis_sharing.weightings.none import Unweighted
from pico import PICO

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def compressed(
    model: Any, *, form: str = "pivoted", group_size: int = 1, shared: Sequence[str] = (), roles: Any = None
) -> tuple[Run, Execute]:
    """Return a compressed model in a run, and the stage that has carried its plan out."""
    decoder = describe(model.double().eval())
    plan = uniform_plan(
        decoder, method="svd", ratio=Fraction("0.3"), group_size=group_size, shared_roles=shared, form=cast(Any, form)
    )
    stage = Execute(cast(Any, None), cast(Any, None), Planning(), in_nats=False)
    stage.executed, stage.folder = [], None
    kept = [entry for entry in plan.entries if roles is None or decoder.by_name[entry.members[0]].role in roles]
    for outcome in execute(model, decoder, plan.model_copy(update={"entries": tuple(kept)}), Unweighted()):
        install(model, outcome)
        stage.executed.append(Executed(outcome.entry, 0.0, 0.0))
    return Run(model=model, tokenizer=None, whole=decoder, decoder=decoder), stage


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def in_order(run: Run, stage: Execute) -> dict[str, Factors]:
    """Bring the inputs in order, and return the entry of every projection; the model must compute the same."""
    before = logits(run.model)
    OrderInputs(stage, pivoted=True, join=True).run(run)
    torch.testing.assert_close(logits(run.model), before, atol=1e-9, rtol=1e-7)
    return {name: cast(Factors, done.entry) for done in stage.executed for name in done.entry.members}


def modules_of(run: Run, *paths: str, block: int = 1) -> list[FactorizedLinear]:
    modules = [run.model.get_submodule(f"{run.decoder.blocks[block]}.{path}") for path in paths]
    assert all(isinstance(module, FactorizedLinear) for module in modules)
    return cast(list[FactorizedLinear], modules)


def test_factors_that_read_one_input_have_one_order() -> None:
    run, stage = compressed(PICO["llama"]())
    entries = in_order(run, stage)
    q, k, v = modules_of(run, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert q.order is not None
    assert q.order is k.order is v.order
    assert q.reading is k.reading is v.reading
    names = [p.name for p in run.decoder.of_block(1) if p.role in "qkv"]
    assert len({entries[name].order for name in names}) == 1
    assert {entries[name].pivots for name in names} == set(entries[names[0]].order)
    (down,) = modules_of(run, "mlp.down_proj")
    assert down.order is None  # the neurons are permuted


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "phi3", "gemma3", "gpt_neox", "starcoder2"])
def test_no_input_of_down_has_to_be_put_in_order(name: str) -> None:
    run, stage = compressed(PICO[name]())
    in_order(run, stage)
    down = [p for p in run.decoder.projections if p.role == "down"]
    assert down
    assert all(cast(FactorizedLinear, run.model.get_submodule(p.name)).order is None for p in down)


@pytest.mark.parametrize("dense", [("gate", "up"), ("gate",)])
def test_neurons_of_dense_projections_are_permuted_too(dense: tuple[str, ...]) -> None:
    run, stage = compressed(PICO["llama"](), roles={"down", "up"} - set(dense))
    in_order(run, stage)
    assert modules_of(run, "mlp.down_proj")[0].order is None


def test_bases_shared_between_blocks_connect_their_inputs() -> None:
    run, stage = compressed(PICO["llama"](), group_size=2, shared=("q", "gate", "down"))
    in_order(run, stage)
    first, second = (modules_of(run, "self_attn.q_proj", "self_attn.k_proj", block=block) for block in (0, 1))
    orders = [module.order for module in (*first, *second)]
    assert all(order is not None and torch.equal(order, cast(Any, orders[0])) for order in orders)
    assert modules_of(run, "mlp.down_proj", block=0)[0].order is None


def test_large_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound below that of private pivots every entry keeps its own."""
    monkeypatch.setattr(common_order, "LARGEST", 1e-3)
    run, stage = compressed(PICO["llama"](), group_size=2, shared=("q",))
    before = [cast(Factors, done.entry).pivots for done in stage.executed]
    entries = in_order(run, stage)
    attention = [p.name for p in run.decoder.projections if p.role in "qkv"]
    assert all(not entries[name].order for name in attention)
    kept = [cast(Factors, done.entry).pivots for done in stage.executed if done.entry.owner in attention]
    assert set(kept) <= set(before)


class _Scaled(nn.Module):
    """The feed-forward layer of LLaMA with a scale of its own for every neuron."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, nn.SiLU()
        self.register_buffer("scale", torch.linspace(0.1, 2, mlp.down_proj.in_features, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.scale)


def test_neurons_that_differ_by_more_than_their_weights_stay_where_they_are() -> None:
    model = PICO["llama"]().double()
    for layer in model.model.layers[:2]:
        layer.mlp = _Scaled(layer.mlp)
    run, stage = compressed(model)
    in_order(run, stage)
    assert [modules_of(run, "mlp.down_proj", block=block)[0].order is None for block in (0, 1, 2)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_plain_bases_of_one_input_are_one_tensor(name: str, tmp_path: Path) -> None:
    run, stage = compressed(PICO[name](), form="plain")
    entries = in_order(run, stage)
    attention = [p.name for p in run.decoder.of_block(2) if p.role in "qkv"]
    owners = {entries[member].holder for member in attention}
    assert len(owners) == 1
    assert owners <= set(attention)
    stored = sum(entries[member].rank for member in attention)
    assert [entries[member].rows[1] for member in attention if entries[member].rows] == [stored] * 3
    weights = {id(cast(FactorizedLinear, run.model.get_submodule(member)).basis.weight) for member in attention}
    assert len(weights) == 1
    declare_compressed(run.model, [done.entry for done in stage.executed], {})
    run.model.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert torch.equal(logits(loaded), logits(run.model))


def test_pivoted_bases_of_one_rank_are_one_tensor_and_one_product() -> None:
    run, stage = compressed(PICO["llama"]())
    entries = in_order(run, stage)
    gate, up = modules_of(run, "mlp.gate_proj", "mlp.up_proj")
    assert gate.rank == up.rank
    assert gate.basis.weight is up.basis.weight
    assert len(gate.basis.weight) == 2 * gate.rank
    assert {entries[p.name].rows for p in run.decoder.of_block(1) if p.role in ("gate", "up")} == {
        (0, 2 * gate.rank),
        (gate.rank, 2 * gate.rank),
    }


def test_tensors_are_kept_in_files_where_outcomes_are(tmp_path: Path) -> None:
    run, stage = compressed(PICO["llama"]())
    stage.folder = tmp_path
    in_order(run, stage)
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "order-00000.safetensors"
