"""Factors of whole models, and the refit."""

from fractions import Fraction
from typing import Any

import pytest
import torch

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.errors import NumericalError
from basis_sharing.linalg.pivoting import Pivoting
from basis_sharing.models.decoder import describe, weight
from basis_sharing.plans.plan import Plan, PlanGroup, multiplications, stored_parameters
from basis_sharing.recipe.presets import Weighting
from basis_sharing.runtime.modeling_basis_sharing import FactorizedLinear
from basis_sharing.runtime.surgery import install_factors, projection_parameters
from basis_sharing.treatments.factors.outcome import GroupOutcome
from basis_sharing.treatments.factors.solve import factorize, refit
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher
from pico import PICO

IDS = torch.randint(0, 256, (6, 64), generator=torch.Generator().manual_seed(0))


def moments_of(model: Any, decoder: Any) -> MomentStore:
    store = MomentStore()
    for block, moments in sweep(model, decoder, IDS, Statistics(gram=True, abs_sum=True), dtype=torch.float32):
        store.put(block, moments)
    return store


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


def run(model: Any, decoder: Any, plan: Plan, weighting: Weighting, store: MomentStore) -> list[GroupOutcome]:
    return list(factorize(model, decoder, plan, Weigher(weighting, moments=store)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_factors_equal_the_authors_recipe(name: str) -> None:
    """Cholesky of the summed Gram matrix, inverse, SVD of the wide matrix: the paper, word for word."""
    model, decoder, plan = setup(name)
    store = moments_of(model, decoder)
    known = {p.name: p for p in decoder.projections}
    for outcome, group in zip(run(model, decoder, plan, Weighting.SECOND_MOMENT, store), plan.groups, strict=True):
        members = [known[n] for n in group.members]
        G = torch.stack([store.get(p.block, p.input).gram for p in members]).sum(0).double()
        S = torch.linalg.cholesky(G).T
        W = torch.cat([weight(model, p).double() for p in members], dim=1)
        U, sigma, Vt = torch.linalg.svd(S @ W, full_matrices=False)
        k = group.rank
        expected = torch.linalg.inv(S) @ (U[:, :k] * sigma[:k]) @ Vt[:k]
        found = outcome.factors.basis.double() @ torch.cat(outcome.factors.coefficients, dim=1).double()
        assert torch.allclose(found, expected, atol=1e-6)
        assert outcome.relative_loss == pytest.approx(
            (sigma[k:].square().sum() / sigma.square().sum()).item(), rel=1e-6
        )
        assert outcome.ridge == 0


def loss_weigher(model: Any, decoder: Any) -> Weigher:
    store = MomentStore()
    for block, moments in backward_sweep(model, decoder, IDS, dtype=torch.float32):
        store.put(block, moments)
    return Weigher(Weighting.LOSS, moments=store)


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_the_reported_loss_is_that_of_the_factors_in_nats(name: str, form: Any) -> None:
    """1/2 tr(dW^T G dW H), with the moments of inputs and gradients moved a little towards their mean diagonals."""
    model, decoder, plan = setup(name, group_size=2, form=form)
    weigher = loss_weigher(model, decoder)
    known = {p.name: p for p in decoder.projections}
    for outcome in factorize(model, decoder, plan, weigher):
        assert outcome.not_pivoted is None
        expected = total = 0.0
        B = outcome.factors.full_basis()
        for member, C in zip(outcome.factors.members, outcome.factors.coefficients, strict=True):
            p = known[member]
            assert weigher.moments is not None
            G = weigher.moments.get(p.block, p.input).gram
            H = weigher.moments.get(p.block, p.name).gradient
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
    for outcome in factorize(model, decoder, plan, loss_weigher(model, decoder)):
        install_factors(model, outcome.factors)
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
        weigher = loss_weigher(model, decoder)
        assert weigher.moments is not None
        for p in decoder.projections:
            gradient = weigher.moments.get(p.block, p.name).gradient
            assert gradient is not None
            gradient *= 1e-9
        model.to(stored)
        for outcome in factorize(model, decoder, plan, weigher):
            install_factors(model, outcome.factors)
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
    for weighting in (Weighting.NONE, Weighting.SECOND_MOMENT):
        model, decoder, plan = setup(name, group_size=1)
        for outcome in run(model, decoder, plan, weighting, moments_of(model, decoder)):
            install_factors(model, outcome.factors)
        errors[weighting] = output_error(PICO[name](), model)
    assert errors[Weighting.SECOND_MOMENT] < errors[Weighting.NONE]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_pivoted_factors_have_a_higher_rank_and_lose_less_in_the_same_size(name: str) -> None:
    losses = {}
    for form in ("plain", "pivoted"):
        model, decoder, plan = setup(name, form=form)
        outcomes = run(model, decoder, plan, Weighting.SECOND_MOMENT, moments_of(model, decoder))
        losses[form] = [outcome.relative_loss for outcome in outcomes]
        for outcome in outcomes:
            assert (outcome.factors.pivots is not None) == (form == "pivoted")
            assert outcome.factors.basis.abs().max() <= 1.06 or form == "plain"
    assert all(pivoted < plain for pivoted, plain in zip(losses["pivoted"], losses["plain"], strict=True))


@pytest.mark.parametrize("rank_of_the_weight", [0, 5])
def test_a_basis_that_cannot_be_pivoted_is_stored_plainly_in_the_same_size(rank_of_the_weight: int) -> None:
    model, decoder, _ = setup("llama")
    name = "model.layers.0.mlp.gate_proj"
    weight_of = model.get_submodule(name).weight.data
    weight_of[:, rank_of_the_weight:] = 0  # features that have no weight: the basis has empty columns
    plan = Plan(method="svd", ratio=0.3, groups=(PlanGroup(members=(name,), rank=32, form="pivoted"),))
    (outcome,) = run(model, decoder, plan, Weighting.NONE, MomentStore())
    C = outcome.factors.coefficients[0]
    assert torch.allclose(outcome.factors.full_basis() @ C, weight_of.T, atol=1e-6)
    assert outcome.loss <= 1e-12
    if outcome.not_pivoted is None:
        assert outcome.factors.rank == 32
    else:
        assert outcome.factors.pivots is None
        assert outcome.factors.rank == (32 * (64 + 96) - 32**2) // (64 + 96)


def test_a_single_vector_is_pivoted_since_nothing_smaller_is_plain() -> None:
    """Both forms hold the same product then: which one rounds better is chance, which one is smaller is not."""
    model, decoder, plan = setup("llama", form="pivoted")
    groups = tuple(group.model_copy(update={"rank": 1}) for group in plan.groups)
    plan = plan.model_copy(update={"groups": groups})
    for outcome in run(model, decoder, plan, Weighting.NONE, MomentStore()):
        assert outcome.not_pivoted is None
        install_factors(model, outcome.factors)
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
    for outcome, group in zip(run(model, decoder, plan, Weighting.NONE, MomentStore()), plan.groups, strict=True):
        assert outcome.not_pivoted == "its basis has dependent columns"
        factors = outcome.factors
        assert factors.pivots is None
        d_in, d_outs = len(factors.basis), tuple(C.shape[1] for C in factors.coefficients)

        def costs(rank: int, form: Any, d_in: int = d_in, d_outs: Any = d_outs) -> tuple[int, int]:
            return stored_parameters(d_in, sum(d_outs), rank, form), multiplications(d_in, d_outs, rank, form)

        planned = costs(group.rank, "pivoted")
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
    assert {outcome.not_pivoted for outcome in run(model, decoder, plan, Weighting.NONE, MomentStore())} == {None}
    monkeypatch.setattr("basis_sharing.treatments.factors.solve.pivot", first_rows)
    outcomes = run(model, decoder, plan, Weighting.NONE, MomentStore())
    assert {outcome.not_pivoted for outcome in outcomes} == {
        "rounding to bfloat16 costs it more than the higher rank gains"
    }
    assert all(outcome.factors.pivots is None for outcome in outcomes)


def test_asvd_scales_by_the_root_of_the_mean_absolute_activation() -> None:
    model, decoder, _ = setup("llama")
    store = moments_of(model, decoder)
    projection = decoder.projections[0]
    moments = store.get(projection.block, projection.input)
    (member,) = Weigher(Weighting.MEAN_ABSOLUTE, moments=store).problem(model, [projection])
    assert member.H is None
    assert moments.abs_sum is not None
    assert torch.allclose(member.S.apply(torch.eye(64).double()).diagonal(), (moments.abs_sum / moments.tokens).sqrt())


def test_refit_minimises_the_error_on_the_compressed_flow() -> None:
    model, decoder, plan = setup("llama", ratio="0.5")
    originals = {p.name: weight(model, p).clone() for p in decoder.projections}
    for outcome in run(model, decoder, plan, Weighting.SECOND_MOMENT, moments_of(model, decoder)):
        install_factors(model, outcome.factors)
    store = moments_of(model, decoder)
    known = {p.name: p for p in decoder.projections}

    def losses() -> list[float]:
        found = []
        for group in plan.groups:
            members = [known[n] for n in group.members]
            G = store.total([(p.block, p.input) for p in members]).gram.double()
            modules = [model.get_submodule(n) for n in group.members]
            assert all(isinstance(module, FactorizedLinear) for module in modules)
            D = torch.cat(
                [
                    originals[n].double() - (m.coeff.weight @ m.basis.weight).T.double()
                    for n, m in zip(group.members, modules, strict=True)
                ],
                dim=1,
            )
            found.append((D * (G @ D)).sum().item())
        return found

    before = losses()
    assert refit(model, decoder, plan, originals, store) == {}
    after = losses()
    assert all(b <= a * (1 + 1e-4) for a, b in zip(before, after, strict=True))
    assert sum(after) < 0.99 * sum(before)


def test_refit_reports_singular_groups() -> None:
    model, decoder, plan = setup("llama", ratio="0.3")
    originals = {p.name: weight(model, p).clone() for p in decoder.projections}
    for outcome in run(model, decoder, plan, Weighting.NONE, MomentStore()):
        install_factors(model, outcome.factors)
    store = MomentStore()
    for block, moments in sweep(model, decoder, IDS[:1, :8], Statistics(gram=True), dtype=torch.float32):
        store.put(block, moments)
    ridges = refit(model, decoder, plan, originals, store)
    assert set(ridges) == {group.members[0] for group in plan.groups}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
