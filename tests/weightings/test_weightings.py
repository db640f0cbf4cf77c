"""Every weighting: what its problems are, and that the published ones equal their formulas."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.truncation import loss_of, truncate
from basis_sharing.linalg.whitening import CholeskyWhitening, IdentityWhitening
from basis_sharing.models.decoder import describe, weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.weightings.base import WEIGHTINGS, Weighting
from basis_sharing.weightings.fisher import Fisher
from basis_sharing.weightings.loss import Loss
from basis_sharing.weightings.mean_absolute import MeanAbsolute
from basis_sharing.weightings.none import Unweighted
from basis_sharing.weightings.second_moment import SecondMoment
from basis_sharing.weightings.sensitivity import Sensitivity
from measured import IDS, all_moments
from pico import PICO

NAMES = ["fisher", "loss", "mean-absolute", "none", "second-moment", "sensitivity"]
TOKENS = IDS.numel()


@cache
def prepared(name: str) -> tuple[Any, Decoder, MomentStore, dict[str, Tensor]]:
    model = PICO[name]()
    decoder = describe(model)
    return model, decoder, all_moments(model, decoder), row_fisher(model, decoder, IDS[:3])


def made(kind: str, name: str) -> Weighting:
    _, decoder, moments, fisher = prepared(name)
    own: dict[str, Any] = {
        "fisher": {"fisher": fisher},
        "none": {},
        "sensitivity": {"sensitivity": {p.name: 0.5 + p.block for p in decoder.projections}},
    }
    return WEIGHTINGS[kind](**{"moments": moments, **own.get(kind, {})})


def groups(decoder: Decoder) -> list[list[Projection]]:
    """One projection, two that read one input, two blocks, and both."""
    first = decoder.projections[0]
    wide = decoder.projections[-1]
    joint = [p for p in decoder.of_block(0) if p.input == first.input]
    deep = [p for p in decoder.projections if p.role == first.role][:2]
    both = [p for p in decoder.projections if p.input == first.input and p.block < 2]
    return [[first], [wide], joint, deep, both]


def matrix(S: Any, d_in: int) -> Tensor:
    found: Tensor = S.apply(torch.eye(d_in, dtype=torch.float64))
    return found


def gram_of(moments: MomentStore, p: Projection) -> Tensor:
    gram = moments.get(p.block, p.input).gram
    assert gram is not None
    return gram.double()


def shrunk(M: Tensor, share: float) -> Tensor:
    return (1 - share) * M + share * M.diagonal().mean() * torch.eye(len(M), dtype=torch.float64)


def test_every_preset_has_its_weighting() -> None:
    assert sorted(WEIGHTINGS) == NAMES
    assert {preset.weighting for preset in PRESETS.values()} == set(NAMES) - {"sensitivity"}
    assert all(WEIGHTINGS[name].name == name for name in NAMES)
    assert {name for name in NAMES if WEIGHTINGS[name].in_nats} == {"loss", "sensitivity"}
    assert {name for name in NAMES if WEIGHTINGS[name].gradients} == {"loss"}
    assert {name for name in NAMES if not WEIGHTINGS[name].whitens} == {"none"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", NAMES)
def test_the_matrices_of_a_problem(kind: str, name: str) -> None:
    model, decoder, _, _ = prepared(name)
    weighting = made(kind, name)
    for group in groups(decoder):
        problem = weighting.problem(model, group)
        assert len(problem) == len(group)
        for member, p in zip(problem, group, strict=True):
            assert member.shape == (p.d_in, p.d_out)
            assert member.W.dtype == torch.float64
            assert torch.equal(member.W, weight(model, p).double())
            S = matrix(member.S, p.d_in)
            assert S.shape == (p.d_in, p.d_in)
            assert S.dtype == torch.float64
            assert torch.isfinite(S).all()
            G = S.T @ S
            assert torch.linalg.eigvalsh(G)[0] > 0
            H = member.H
            assert (H is None) == (not weighting.in_nats)
            if H is None:
                assert member.output_scale is None
            else:
                assert H.shape == (p.d_out, p.d_out)
                assert H.dtype == torch.float64
                assert torch.equal(H, H.T)
                assert torch.linalg.eigvalsh(H)[0] > 0
                assert member.output_scale == pytest.approx(H.diagonal().mean().item(), rel=1e-6)


@pytest.mark.parametrize("kind", NAMES)
def test_published_ones_sum_over_a_group_and_the_planners_keep_layers_apart(kind: str) -> None:
    model, decoder, _, _ = prepared("llama")
    weighting = made(kind, "llama")
    *_, joint, deep, _ = groups(decoder)
    across = weighting.problem(model, deep)
    within = weighting.problem(model, joint)
    assert (across[0].input_key == across[1].input_key) == (not weighting.in_nats)
    if kind != "fisher":  # which sums over the projections themselves
        assert len({member.input_key for member in within}) == 1
    if not weighting.in_nats:
        assert torch.equal(matrix(across[0].S, 64), matrix(across[1].S, 64))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_plain_decomposition_weighs_nothing(name: str) -> None:
    model, decoder, _, _ = prepared(name)
    for group in groups(decoder):
        for member in Unweighted().problem(model, group):
            assert isinstance(member.S, IdentityWhitening)
            error = torch.randn(member.shape, dtype=torch.float64)
            assert loss_of(member, error) == pytest.approx(error.square().sum().item())


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_svd_llm_whitens_with_the_cholesky_factor_of_the_second_moment(name: str) -> None:
    """And Basis Sharing with that of the sum over a group's layers (section 3.2)."""
    model, decoder, moments, _ = prepared(name)
    for group in groups(decoder):
        G = torch.stack([gram_of(moments, p) for p in group]).sum(0)
        for member in SecondMoment(moments=moments).problem(model, group):
            assert isinstance(member.S, CholeskyWhitening)
            assert torch.allclose(matrix(member.S, len(G)), torch.linalg.cholesky(G).T, rtol=1e-4, atol=1e-3)
            assert member.S.ridge == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_asvd_scales_by_the_root_of_the_mean_absolute_activation(name: str) -> None:
    model, decoder, store, _ = prepared(name)
    for group in groups(decoder):
        parts = [store.get(p.block, p.input) for p in group]
        total = torch.stack([part.abs_sum for part in parts if part.abs_sum is not None]).sum(0)
        mean = total / sum(part.tokens for part in parts)
        for member in MeanAbsolute(moments=store).problem(model, group):
            assert member.H is None
            assert torch.allclose(matrix(member.S, len(mean)), mean.double().sqrt().diag())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_fwsvd_scales_rows_by_the_root_of_their_fisher_information(name: str) -> None:
    """Squared gradients of the next-token loss, one window at a time, summed over each row of ``[d_in, d_out]``."""
    model, decoder, _, fisher = prepared(name)
    (projection, *_), *_ = groups(decoder)
    matrix_of = weight(model, projection)
    information = torch.zeros(projection.d_in, dtype=torch.float64)
    parameter = model.get_submodule(projection.name).weight
    for ids in IDS[:3]:
        model.zero_grad()
        model(input_ids=ids[None], labels=ids[None]).loss.backward()
        gradient = parameter.grad if parameter.shape == matrix_of.shape and projection.transposed else parameter.grad.T
        information += gradient.double().square().sum(1)
    model.zero_grad()
    ours = fisher[projection.name]
    assert torch.allclose(ours / ours.sum(), information / information.sum(), rtol=1e-3)
    for group in groups(decoder):
        expected = torch.stack([fisher[p.name] for p in group]).sum(0).sqrt()
        for member in Fisher(fisher=fisher).problem(model, group):
            assert torch.allclose(matrix(member.S, len(expected)).diagonal(), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_the_planners_weighting_is_in_nats_per_token(name: str) -> None:
    """1/2 tr(dW^T G dW H): means over tokens, moved a little towards their mean diagonals."""
    model, decoder, moments, _ = prepared(name)
    for group in groups(decoder):
        for member, p in zip(Loss(moments=moments).problem(model, group), group, strict=True):
            gradient = moments.get(p.block, p.name).gradient
            assert gradient is not None
            G, H = shrunk(gram_of(moments, p) / TOKENS, 0.01), shrunk(gradient.double() / TOKENS, 0.1)
            error = torch.randn(p.d_in, p.d_out, generator=torch.Generator().manual_seed(0)).double()
            expected = 0.5 * (error.T @ G @ error @ H).trace().item()
            assert loss_of(member, error) == pytest.approx(expected, rel=1e-6)


def test_sensitivities_are_in_nats_per_token_of_output_error() -> None:
    model, decoder, moments, _ = prepared("llama")
    weighting = made("sensitivity", "llama")
    assert isinstance(weighting, Sensitivity)
    for group in groups(decoder):
        for member, p in zip(weighting.problem(model, group), group, strict=True):
            G = shrunk(gram_of(moments, p) / TOKENS, 0.01)
            error = torch.randn(p.d_in, p.d_out, generator=torch.Generator().manual_seed(0)).double()
            expected = weighting.sensitivity[p.name] * (error.T @ G @ error).trace().item()
            assert loss_of(member, error) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", sorted({preset.weighting for preset in PRESETS.values()} - {"loss"}))
def test_the_published_ones_follow_from_the_planners_statistics(kind: str) -> None:
    model, decoder, moments, _ = prepared("llama")
    known = Loss(moments=moments)
    found = WEIGHTINGS[kind].from_known(known, decoder.projections)
    assert type(found) is WEIGHTINGS[kind]
    for group in groups(decoder):
        ours = found.problem(model, group)
        if kind != "fisher":
            for a, b in zip(ours, made(kind, "llama").problem(model, group), strict=True):
                assert torch.equal(matrix(a.S, a.shape[0]), matrix(b.S, b.shape[0]))
            continue
        # As if inputs and gradients were independent: the information of a row is that of its input, times a number.
        for member in ours:
            information = torch.zeros(group[0].d_in, dtype=torch.float64)
            for p in group:
                gradient = moments.get(p.block, p.name).gradient
                assert gradient is not None
                information += gram_of(moments, p).diagonal() * gradient.double().trace()
            assert torch.allclose(matrix(member.S, len(information)).diagonal().square(), information)


def test_without_gradients_the_fisher_information_is_that_of_the_inputs() -> None:
    _, decoder, moments, _ = prepared("llama")
    known = Sensitivity(moments=moments, sensitivity={p.name: 1.0 for p in decoder.projections})
    found = Fisher.from_known(known, decoder.projections)
    for p in decoder.projections:
        assert torch.allclose(found.fisher[p.name], gram_of(moments, p).diagonal())


def test_projections_of_one_input_get_one_whitening_while_it_is_remembered() -> None:
    model, decoder, _, _ = prepared("llama")
    q, k, v = (p for p in decoder.of_block(1) if p.input == decoder.projections[0].input)
    weighting = made("loss", "llama")
    S = weighting.problem(model, [q])[0].S
    assert weighting.problem(model, [k, v])[0].S is S
    for p in decoder.projections:
        assert weighting.problem(model, [p])[0].S is not None
    assert weighting.problem(model, [q])[0].S is S
    forgetful = replace(weighting, remembered_bytes=0)
    first = forgetful.problem(model, [q])[0].S
    assert forgetful.problem(model, [k])[0].S is first
    assert forgetful.problem(model, [decoder.projections[-1]])[0].S is not first
    again = forgetful.problem(model, [q])[0].S
    assert again is not first
    assert torch.equal(matrix(again, 64), matrix(first, 64))


@pytest.mark.parametrize("kind", ["loss", "sensitivity"])
def test_losses_of_layers_add_up_to_those_of_their_group(kind: str) -> None:
    """One unit for all groups: what nothing of a group is worth is the sum over its members."""
    model, decoder, _, _ = prepared("llama")
    weighting = made(kind, "llama")
    for group in groups(decoder):
        together = truncate(weighting.problem(model, group)).total
        alone = sum(truncate(weighting.problem(model, [p])).total for p in group)
        assert together == pytest.approx(alone, rel=1e-6)
