"""Narrow experts: what they lose, that full width loses nothing, and every architecture with experts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import basis_sharing
from architectures import decoders, tiny
from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.errors import BasisSharingError, NumericalError
from basis_sharing.linalg.truncation import Weighted
from basis_sharing.linalg.whitening import cholesky_whitening
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Experts
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.expert_entries_basis_sharing import Narrow
from basis_sharing.runtime.experts_basis_sharing import NarrowExperts, width_axes
from basis_sharing.runtime.format_basis_sharing import FormatError, entry_from
from basis_sharing.treatments.base import TREATMENTS, Search, install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.experts.problem import Around
from basis_sharing.treatments.experts.solve import solve_experts
from basis_sharing.treatments.experts.visits import visits_note
from basis_sharing.weightings.loss import Loss
from pico import PICO, TEXT, pico_tokenizer

TABLE = Path(__file__).parents[2] / "fixtures" / "architectures.json"
IDS = torch.randint(0, 250, (3, 40), generator=torch.Generator().manual_seed(0))
REFUSED = {name for name, found in json.loads(TABLE.read_text()).items() if "refused" in found}
MIXTURES = [model_type for model_type in decoders() if model_type not in REFUSED]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def entry_of(experts: Experts, width: int) -> Narrow:
    return Narrow(
        members=(experts.name,), width=width, count=experts.count, active=experts.active, weights=experts.weights
    )


def metric(size: int, seed: int) -> torch.Tensor:
    a = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / size


def around_of(model: nn.Module, experts: Experts, seed: int = 0) -> Around:
    """Return experts with random weightings."""
    module, d = model.get_submodule(experts.name), experts.d_in
    reads, writes = (
        Weighted(torch.eye(d, dtype=torch.float64), cholesky_whitening(metric(d, 2 * seed + n)), metric(d, 9 + n))
        for n in range(2)
    )
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return Around(reads, writes, weights, width_axes(module, model.config.get_text_config()))  # type: ignore[operator]


@pytest.mark.parametrize(
    "model_type",
    [t if t in ("gpt_oss", "llama4_text") else pytest.param(t, marks=pytest.mark.architectures) for t in MIXTURES],
)
def test_full_width_is_lossless_in_every_mixture(model_type: str) -> None:
    model = tiny(model_type)
    expected = logits(model)
    for number, experts in enumerate(describe(model).experts):
        dtype = model.dtype
        install(model, solve_experts(around_of(model, experts, number), entry_of(experts, experts.d_in), dtype))
        assert isinstance(model.get_submodule(experts.name), NarrowExperts)
    assert torch.allclose(logits(model), expected, atol=2e-4 * float(expected.abs().max()))


def test_the_loss_is_that_of_both_projections() -> None:
    model = PICO["mixtral"]()
    experts = describe(model).experts[0]
    problem = around_of(model, experts)
    outcome = solve_experts(problem, entry_of(experts, 24), torch.float64)
    A = outcome.tensors[f"{experts.name}.input_basis.weight"].T
    Z = outcome.tensors[f"{experts.name}.output_basis.weight"].T
    assert torch.allclose(A.T @ A, torch.eye(24, dtype=A.dtype), atol=1e-9)
    assert torch.allclose(Z @ Z.T, torch.eye(24, dtype=A.dtype), atol=1e-9)
    # The best projection on the columns of A in the metric G, and the best on the rows of Z under H.
    G, H = problem.reads.G, problem.reads.H
    assert H is not None
    P = A @ torch.linalg.solve(A.T @ G @ A, A.T @ G) - torch.eye(64, dtype=A.dtype)
    after, weight = problem.writes.G, problem.writes.H
    assert weight is not None
    Q = weight @ Z.T @ torch.linalg.inv(Z @ weight @ Z.T) @ Z - torch.eye(64, dtype=A.dtype)
    expected = (P.T @ G @ P @ H).trace() + (Q.T @ after @ Q @ weight).trace()
    assert outcome.loss == pytest.approx(float(expected), rel=1e-6)


def test_wider_loses_less_than_narrower() -> None:
    model = PICO["mixtral"]()
    experts = describe(model).experts[0]
    problem = around_of(model, experts)
    losses = [solve_experts(problem, entry_of(experts, width), torch.float32).loss for width in (16, 32, 48, 64)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Loss]:
    """A mixture with its statistics."""
    model = PICO["mixtral"]()
    store = MomentStore()
    store.fill(backward_sweep(model, describe(model), IDS, dtype=torch.float32))
    return model, Loss(moments=store)


def test_what_experts_read_and_write_is_that_of_plain_autograd(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    experts = describe(model).experts[1]
    module = model.get_submodule(experts.name)
    seen: dict[str, list[torch.Tensor]] = {"x": [], "u": [], "y": [], "g": []}

    def before(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()
        seen["x"].append(x.detach())
        x.register_hook(seen["u"].append)
        return (x, *args[1:])

    def after(_: Any, __: Any, y: torch.Tensor) -> None:
        seen["y"].append(y.detach())
        y.register_hook(seen["g"].append)

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    for window in IDS:
        found = model(input_ids=window[None], use_cache=False).logits[0]
        nn.functional.cross_entropy(found[:-1], window[1:], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    moments = weighting.moments
    assert moments is not None
    for side, x, g in ((experts.reads, "x", "u"), (experts.writes, "y", "g")):
        for kind, name in (("gram", x), ("gradient", g)):
            rows = torch.cat(seen[name]).double()
            stored = moments.get(experts.block, side.input if kind == "gram" else side.name)
            tensor = getattr(stored, kind).double()
            assert (tensor - rows.T @ rows).norm() <= 1e-4 * (rows.T @ rows).norm()
    visits = moments.get(experts.block, experts.reads.input).visits
    assert visits is not None
    assert int(visits.sum()) == experts.active * IDS.numel()


def test_seldom_visited_experts_are_said(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    decoder = describe(model)
    entries = [entry_of(experts, 32) for experts in decoder.experts]
    assert weighting.moments is not None
    moments = weighting.moments.get(0, decoder.experts[0].reads.input)
    assert visits_note(weighting, decoder, []) == []
    kept, moments.visits = moments.visits, torch.tensor([100, 100, 0, 1])
    (note,) = visits_note(weighting, decoder, entries)
    moments.visits = kept
    assert "2 of 16 experts" in note
    assert "1 of them none" in note


def test_the_planner_gets_widths_that_kernels_can_use(measured: tuple[Any, Loss]) -> None:
    model, weighting = measured
    from basis_sharing.costs.parameters import Parameters

    search = Search(model, describe(model), weighting, Parameters())
    candidates = list(TREATMENTS["experts"].candidates(search))
    assert len(candidates) == 4
    for candidate in candidates:
        assert all(option.width % 8 == 0 for option in candidate.options)  # type: ignore[attr-defined]
        assert list(candidate.losses) == sorted(candidate.losses, reverse=True)
    plan = Plan(method="auto", ratio=0.1, entries=(candidates[0].options[3],))
    (outcome,) = execute(model, describe(model), plan, weighting)
    assert outcome.loss == pytest.approx(candidates[0].losses[3], rel=1e-6)


def test_damaged_experts_are_refused() -> None:
    model = PICO["mixtral"]()
    experts = describe(model).experts[0]
    with torch.no_grad():
        model.get_submodule(experts.name).down_proj[0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        solve_experts(around_of(model, experts), entry_of(experts, 32), torch.float32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width 0"),
        ({"count": "four"}, "count 'four'"),
        ({"members": ("a", "b")}, "experts of 2 blocks"),
    ],
)
def test_malformed_entries_are_refused(changed: dict[str, Any], message: str) -> None:
    data = {"kind": "experts", "members": ("a",), "width": 8, "count": 4, "active": 2, "weights": ("down_proj",)}
    with pytest.raises(FormatError, match=message):
        entry_from({**data, **changed})


@pytest.mark.parametrize("width", [12, 72])
def test_widths_that_kernels_cannot_use_are_refused(width: int) -> None:
    experts = describe(PICO["mixtral"]()).experts[0]
    with pytest.raises(FormatError, match=f"width {width}; a multiple of 8 up to 64"):
        entry_of(experts, width).fit([(experts.d_in, experts.d_out)])


def test_a_model_without_experts_says_so(tmp_path: Any) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(BasisSharingError, match="has no experts"):
        basis_sharing.compress(
            PICO["llama"](),
            0.3,
            tokenizer=pico_tokenizer(),
            treatments="experts",
            calibration=str(tmp_path / "text.txt"),
            windows=4,
            length=32,
        )
