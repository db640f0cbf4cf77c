"""Factors of single experts: their problem, ranks chosen within a budget, and the module that multiplies by them."""

from typing import Any

import pytest
import torch

from architectures import tiny
from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.costs.parameters import Parameters
from basis_sharing.linalg.truncation import loss_of
from basis_sharing.models.decoder import describe
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.expert_entries_basis_sharing import ExpertFactors
from basis_sharing.runtime.experts_basis_sharing import FactorizedExperts
from basis_sharing.runtime.format_basis_sharing import FormatError, entry_from
from basis_sharing.treatments.base import TREATMENTS, Search, install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.expert_factors.problem import ExpertMatrix
from basis_sharing.weightings.loss import Loss
from pico import PICO

IDS = torch.randint(0, 250, (3, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def weighted(model: Any) -> Loss:
    store = MomentStore()
    store.fill(backward_sweep(model, describe(model), IDS, dtype=torch.float32))
    return Loss(moments=store)


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Loss]:
    """A mixture with its statistics."""
    model = PICO["mixtral"]()
    return model, weighted(model)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "nemotron_h"])
def test_full_rank_is_lossless(model_type: str) -> None:
    model = tiny(model_type)
    expected, decoder = logits(model), describe(model)
    entries = []
    for experts in decoder.experts:
        # The first expert stays dense, the others get factors of full rank.
        ranks = {name: (0, *(min(size) for _ in range(experts.count - 1))) for name, size in experts.sizes.items()}
        about = {"count": experts.count, "active": experts.active, "sizes": experts.sizes, "ranks": ranks}
        entries.append(ExpertFactors(members=(experts.name,), **about))
    for outcome in list(execute(model, decoder, Plan(method="auto", ratio=0.1, entries=entries), weighted(model))):
        install(model, outcome)
    assert isinstance(model.get_submodule(decoder.experts[0].name), FactorizedExperts)
    assert torch.allclose(logits(model), expected, atol=2e-4 * float(expected.abs().max()))


def test_the_squares_are_those_of_plain_autograd(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    experts = describe(model).experts[1]
    module = model.get_submodule(experts.name)
    neurons, gradients = torch.zeros(4, 96).double(), torch.zeros(4, 192).double()

    def watch(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x, index, weights = (one.detach() for one in args)

        @torch.enable_grad()  # type: ignore[untyped-decorator]
        def add(g: torch.Tensor) -> None:
            for token in range(len(x)):
                for place, number in enumerate(index[token].tolist()):
                    hidden = (module.gate_up_proj[number].detach() @ x[token]).requires_grad_(True)
                    gate, up = hidden.chunk(2)
                    own = weights[token, place] * (torch.nn.functional.silu(gate) * up)
                    (gradient,) = torch.autograd.grad(own @ module.down_proj[number].detach().T @ g[token], hidden)
                    neurons[number] += own.detach().double().square()
                    gradients[number] += gradient.double().square()

        output.register_hook(add)

    handle = module.register_forward_hook(watch)
    for window in IDS:
        found = model(input_ids=window[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(found[:-1], window[1:], reduction="sum").backward()
    handle.remove()
    model.zero_grad()
    assert weighting.moments is not None
    for name, expected in (("gate_up_proj", gradients), ("down_proj", neurons)):
        squares = weighting.moments.get(1, f"{experts.name}.{name}").squares
        assert squares is not None
        assert torch.allclose(squares, expected, rtol=1e-3)


def test_losses_of_the_options_are_those_of_the_factors(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    decoder = describe(model)
    search = Search(model, decoder, weighting, Parameters())
    candidate = next(iter(TREATMENTS["expert-factors"].candidates(search)))
    parameters = [Parameters().of(candidate.scope, option) for option in candidate.options]
    assert parameters == sorted(parameters, reverse=True)
    assert list(candidate.losses) == sorted(candidate.losses)
    whole = Parameters().dense(candidate.scope)
    assert all(count <= 0.975 * whole for count in parameters)
    entry = candidate.options[len(candidate.options) // 2]
    (outcome,) = execute(model, decoder, Plan(method="auto", ratio=0.1, entries=(entry,)), weighting)
    assert outcome.loss == pytest.approx(candidate.losses[len(candidate.options) // 2], rel=1e-4)
    # The loss is that of the stored factors.
    experts, total = decoder.experts[0], 0.0
    module = install_in_copy(outcome).get_submodule(experts.name)
    for name, stacked in module.dense().items():
        for number in range(experts.count):
            member = ExpertMatrix(weighting, model, experts, name, number)
            total += loss_of(member, stacked[number].T - member.W)
    assert total == pytest.approx(outcome.loss, rel=1e-4)


def install_in_copy(outcome: Any) -> Any:
    model = PICO["mixtral"]()
    install(model, outcome)
    return model


def test_an_expert_that_is_never_visited_keeps_a_rank(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    assert weighting.moments is not None
    decoder = describe(model)
    experts = decoder.experts[0]
    moments = weighting.moments.get(0, experts.reads.input)
    kept, moments.visits = moments.visits, torch.tensor([0, 1000, 1000, 1000])
    stored = {name: weighting.moments.get(0, f"{experts.name}.{name}") for name in experts.sizes}
    before = {name: found.squares for name, found in stored.items()}
    for found in stored.values():
        assert found.squares is not None
        found.squares = found.squares.clone()
        found.squares[0] = 0
    candidate = next(iter(TREATMENTS["expert-factors"].candidates(Search(model, decoder, weighting, Parameters()))))
    member = ExpertMatrix(weighting, model, experts, "gate_up_proj", 0)
    assert member.output_scale is not None
    assert member.output_scale > 0
    smallest = candidate.options[-1]
    assert isinstance(smallest, ExpertFactors)
    assert all(rank > 0 for own in smallest.ranks.values() for rank in own)
    moments.visits = kept
    for name, found in stored.items():
        found.squares = before[name]


SIZES = {"gate_up_proj": (64, 192), "down_proj": (96, 64)}
ENTRY = {
    "kind": "expert-factors",
    "members": ["model.layers.0.mlp.experts"],
    "count": 2,
    "active": 1,
    "sizes": SIZES,
    "ranks": {"gate_up_proj": [8, 0], "down_proj": [16, 64]},
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": ["a", "b"]}, "experts of 2 blocks"),
        ({"count": 0}, "needs count and active"),
        ({"ranks": {"down_proj": [1, 1]}}, "sizes and ranks of the same matrices"),
        ({"sizes": {**SIZES, "down_proj": [96]}}, "two integers"),
        ({"ranks": {"gate_up_proj": [8], "down_proj": [16, 64]}}, "a rank of gate_up_proj for each of 2 experts"),
        ({"ranks": {"gate_up_proj": [8, 65], "down_proj": [16, 64]}}, "rank 65 of gate_up_proj; 0 to 64"),
        ({"ranks": 3}, "sizes and ranks"),
    ],
)
def test_malformed_entries_are_refused(changed: dict[str, Any], message: str) -> None:
    assert entry_from(ENTRY).to_dict() == {
        **ENTRY,
        "sizes": {name: list(size) for name, size in SIZES.items()},
    }
    with pytest.raises(FormatError, match=message):
        entry_from({**ENTRY, **changed})


def test_matrices_of_other_sizes_are_refused() -> None:
    with pytest.raises(FormatError, match="other sizes"):
        entry_from(ENTRY).fit([(64, 3 * 96 * 4)])
    entry_from(ENTRY).fit([(64, 3 * 96 * 2)])
