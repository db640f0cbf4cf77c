"""Factors of whole models."""

from fractions import Fraction
from typing import Any

import pytest
import torch

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import NumericalError
from basis_sharing.linalg.pivoting import Pivoting
from basis_sharing.models.decoder import describe, weight
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.surgery import projection_parameters
from basis_sharing.treatments.base import Outcome, install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.outcome import factors_of
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.base import Weighting
from basis_sharing.weightings.none import Unweighted
from basis_sharing.weightings.second_moment import SecondMoment
from measured import input_moments, loss_weighting
from pico import PICO

IDS = torch.randint(0, 256, (6, 64), generator=torch.Generator().manual_seed(0))


def moments_of(model: Any, decoder: Any) -> MomentStore:
    return input_moments(model, decoder, IDS)


def setup(name: str, ratio: str = "0.3", group_size: int = 2, form: Any = "plain") -> tuple[Any, Any, Plan]:
    model = PICO[name]()
    decoder = describe(model)
    plan = uniform_plan(
        decoder,
        method="svd",
        ratio=Fraction(ratio),
        group_size=group_size,
        shared_roles=decoder.family.shared_roles,
        form=form,
    )
    return model, decoder, plan


def run(model: Any, decoder: Any, plan: Plan, weighting: Weighting) -> list[Outcome]:
    return list(execute(model, decoder, plan, weighting))


def ranked(plan: Plan) -> list[tuple[tuple[str, ...], int]]:
    """Return members and rank of every entry."""
    return [(entry.members, entry.rank) for entry in plan.entries if isinstance(entry, Factors)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_factors_equal_the_authors_recipe(name: str) -> None:
    """Cholesky of the summed Gram matrix, inverse, SVD of the wide matrix: the paper, word for word."""
    model, decoder, plan = setup(name)
    store = moments_of(model, decoder)
    known = {p.name: p for p in decoder.projections}
    outcomes = run(model, decoder, plan, SecondMoment(moments=store))
    for outcome, (names, k) in zip(outcomes, ranked(plan), strict=True):
        members = [known[n] for n in names]
        G = torch.stack([store.get(p.block, p.input).gram for p in members]).sum(0).double()
        S = torch.linalg.cholesky(G).T
        W = torch.cat([weight(model, p).double() for p in members], dim=1)
        U, sigma, Vt = torch.linalg.svd(S @ W, full_matrices=False)
        expected = torch.linalg.inv(S) @ (U[:, :k] * sigma[:k]) @ Vt[:k]
        factors = factors_of(outcome)
        assert (factors.members, factors.rank) == (names, k)
        found = factors.basis.double() @ torch.cat(factors.coefficients, dim=1).double()
        assert torch.allclose(found, expected, atol=1e-6)
        assert outcome.relative_loss == pytest.approx(
            (sigma[k:].square().sum() / sigma.square().sum()).item(), rel=1e-6
        )
        assert outcome.ridge == 0


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_the_reported_loss_is_that_of_the_factors_in_nats(name: str, form: Any) -> None:
    """1/2 tr(dW^T G dW H), with the moments of inputs and gradients moved a little towards their mean diagonals."""
    model, decoder, plan = setup(name, group_size=2, form=form)
    weighting = loss_weighting(model, decoder, IDS)
    known = {p.name: p for p in decoder.projections}
    for outcome in execute(model, decoder, plan, weighting):
        assert outcome.notes == ()
        expected = total = 0.0
        factors = factors_of(outcome)
        B = factors.full_basis()
        for member, C in zip(factors.members, factors.coefficients, strict=True):
            p = known[member]
            assert weighting.moments is not None
            G = weighting.moments.get(p.block, p.input).gram
            H = weighting.moments.get(p.block, p.name).gradient
            assert G is not None
            assert H is not None
            G, H = (M.double() / IDS.numel() for M in (G, H))
            G = 0.99 * G + 0.01 * G.diagonal().mean() * torch.eye(len(G))
            H = 0.9 * H + 0.1 * H.diagonal().mean() * torch.eye(len(H))
            W = weight(model, p).double()
            expected += 0.5 * ((W - B @ C).T @ G @ (W - B @ C) @ H).trace().item()
            total += 0.5 * (W.T @ G @ W @ H).trace().item()
        assert outcome.loss == pytest.approx(expected, rel=1e-5)
        assert outcome.relative_loss == pytest.approx(expected / total, rel=1e-5)


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("form", ["plain", "pivoted"])
def test_projections_that_matter_to_nobody_get_finite_factors(form: Any, group_size: int) -> None:
    """Nothing reads v and gate/up where o and down are zero, as in blocks that were added to a model."""
    model, decoder, plan = setup("llama", form=form, group_size=group_size)
    layer = model.model.layers[2]
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()
    for outcome in execute(model, decoder, plan, loss_weighting(model, decoder, IDS)):
        install(model, outcome)
        assert outcome.loss >= 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(parameter.abs().max() < 1e4 for parameter in model.parameters())
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=IDS[:1]).logits).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("form", ["plain", "pivoted"])
def test_half_precision_holds_factors_weighted_by_tiny_gradients(
    form: Any, group_size: int, dtype: torch.dtype
) -> None:
    """Gradients are squared and averaged: a millionth is much. Stored factors must not inherit that scale."""
    errors = {}
    for stored in (torch.float32, dtype):
        model, decoder, plan = setup("llama", form=form, group_size=group_size)
        weighting = loss_weighting(model, decoder, IDS)
        assert weighting.moments is not None
        for p in decoder.projections:
            gradient = weighting.moments.get(p.block, p.name).gradient
            assert gradient is not None
            gradient *= 1e-9
        model.to(stored)
        for outcome in execute(model, decoder, plan, weighting):
            install(model, outcome)
        errors[stored] = output_error(PICO["llama"](), model.float())
    assert errors[dtype] == pytest.approx(errors[torch.float32], rel=0.05)


def output_error(dense: Any, other: Any) -> float:
    with torch.no_grad():
        return sum(
            (dense(input_ids=ids[None]).logits - other(input_ids=ids[None]).logits).square().sum().item() for ids in IDS
        )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_better_weightings_lose_less(name: str) -> None:
    errors = {}
    for weighting in (Unweighted, SecondMoment):
        model, decoder, plan = setup(name, group_size=1)
        for outcome in run(model, decoder, plan, weighting(moments=moments_of(model, decoder))):
            install(model, outcome)
        errors[weighting] = output_error(PICO[name](), model)
    assert errors[SecondMoment] < errors[Unweighted]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_pivoted_factors_have_a_higher_rank_and_lose_less_in_the_same_size(name: str) -> None:
    losses = {}
    for form in ("plain", "pivoted"):
        model, decoder, plan = setup(name, form=form)
        outcomes = run(model, decoder, plan, SecondMoment(moments=moments_of(model, decoder)))
        losses[form] = [outcome.relative_loss for outcome in outcomes]
        for outcome in outcomes:
            factors = factors_of(outcome)
            assert (factors.pivots is not None) == (form == "pivoted")
            assert factors.basis.abs().max() <= 1.06 or form == "plain"
    assert all(pivoted < plain for pivoted, plain in zip(losses["pivoted"], losses["plain"], strict=True))


@pytest.mark.parametrize("rank_of_the_weight", [0, 5])
def test_a_basis_that_cannot_be_pivoted_is_stored_plainly_in_the_same_size(rank_of_the_weight: int) -> None:
    model, decoder, _ = setup("llama")
    name = "model.layers.0.mlp.gate_proj"
    weight_of = model.get_submodule(name).weight.data
    weight_of[:, rank_of_the_weight:] = 0  # features that have no weight: the basis has empty columns
    plan = Plan(method="svd", ratio=0.3, entries=(Factors(members=(name,), rank=32, form="pivoted"),))
    (outcome,) = run(model, decoder, plan, Unweighted())
    factors = factors_of(outcome)
    assert torch.allclose(factors.full_basis() @ factors.coefficients[0], weight_of.T, atol=1e-6)
    assert outcome.loss <= 1e-12
    if not outcome.notes:
        assert factors.rank == 32
    else:
        assert factors.pivots is None
        assert factors.rank == (32 * (64 + 96) - 32**2) // (64 + 96)


def test_a_single_vector_is_pivoted_since_nothing_smaller_is_plain() -> None:
    """Both forms hold the same product then: which one rounds better is chance, which one is smaller is not."""
    model, decoder, plan = setup("llama", form="pivoted")
    entries = tuple(Factors(members=names, rank=1, form="pivoted") for names, _ in ranked(plan))
    plan = plan.model_copy(update={"entries": entries})
    for outcome in run(model, decoder, plan, Unweighted()):
        assert outcome.notes == ()
        install(model, outcome)
    assert projection_parameters(model, [p.name for p in decoder.projections]) == plan.parameters(decoder)


@pytest.mark.parametrize("group_size", [1, 3])
def test_dependent_columns_are_stored_plainly_and_nothing_grows(
    group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain shared groups multiply more than pivoted ones of their size, so there the rank is lower still."""

    def refuse(_: torch.Tensor) -> Pivoting:
        raise NumericalError("the columns of a basis are linearly dependent: it cannot be pivoted.")

    model, decoder, plan = setup("llama", form="pivoted", group_size=group_size)
    monkeypatch.setattr("basis_sharing.treatments.factors.solve.pivot", refuse)
    for outcome, (names, rank) in zip(run(model, decoder, plan, Unweighted()), ranked(plan), strict=True):
        assert outcome.notes == (f"{names[0]} is stored plainly: its basis has dependent columns.",)
        factors = factors_of(outcome)
        assert factors.pivots is None
        scope = [decoder.by_name[name] for name in names]

        def costs(rank: int, form: Any, scope: Any = scope) -> tuple[int, int]:
            entry = Factors(members=tuple(p.name for p in scope), rank=rank, form=form)
            return Parameters().of(scope, entry), Multiplications().of(scope, entry)

        planned = costs(rank, "pivoted")
        assert all(is_ <= was for is_, was in zip(costs(factors.rank, "plain"), planned, strict=True))
        assert any(is_ > was for is_, was in zip(costs(factors.rank + 1, "plain"), planned, strict=True))


def test_badly_pivoted_factors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pivots are chosen so that this does not happen; the check has to notice if it does."""

    def first_rows(basis: torch.Tensor) -> Pivoting:
        k = basis.shape[1]
        basis = basis.clone()
        basis[k - 1] = basis[: k - 1].sum(0) + 1e-5 * basis[k - 1]  # nearly dependent on the other pivots
        stored = torch.linalg.solve(basis[:k], basis[k:], left=False)
        return Pivoting(torch.arange(k), torch.arange(k, len(basis)), stored, basis[:k])

    model, decoder, plan = setup("llama", form="pivoted")
    model.to(torch.bfloat16)
    assert {outcome.notes for outcome in run(model, decoder, plan, Unweighted())} == {()}
    monkeypatch.setattr("basis_sharing.treatments.factors.solve.pivot", first_rows)
    outcomes = run(model, decoder, plan, Unweighted())
    for outcome in outcomes:
        reason = "rounding to bfloat16 costs it more than the higher rank gains"
        assert outcome.notes == (f"{outcome.entry.owner} is stored plainly: {reason}.",)
        assert factors_of(outcome).pivots is None
