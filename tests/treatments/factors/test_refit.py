"""The refit of all coefficients to the compressed model's inputs."""

from fractions import Fraction
from typing import Any

import torch

from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.models.decoder import describe, weight
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.factors.refit import refit
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.none import Unweighted
from basis_sharing.weightings.second_moment import SecondMoment
from measured import IDS, input_moments
from pico import PICO


def setup(ratio: str) -> tuple[Any, Any, Plan]:
    model = PICO["llama"]()
    decoder = describe(model)
    shared = decoder.family.shared_roles
    return model, decoder, uniform_plan(decoder, method="svd", ratio=Fraction(ratio), group_size=2, shared_roles=shared)


def members_of(plan: Plan) -> list[tuple[str, ...]]:
    return [entry.members for entry in plan.entries]


def test_refit_minimises_the_error_on_the_compressed_flow() -> None:
    model, decoder, plan = setup("0.5")
    originals = {p.name: weight(model, p).clone() for p in decoder.projections}
    for outcome in execute(model, decoder, plan, SecondMoment(moments=input_moments(model, decoder))):
        install(model, outcome)
    store = input_moments(model, decoder)
    known = {p.name: p for p in decoder.projections}

    def losses() -> list[float]:
        found = []
        for names in members_of(plan):
            members = [known[n] for n in names]
            G = store.total([(p.block, p.input) for p in members]).gram.double()
            modules = [model.get_submodule(n) for n in names]
            assert all(isinstance(module, FactorizedLinear) for module in modules)
            D = torch.cat(
                [
                    originals[n].double() - (m.coeff.weight @ m.basis.weight).T.double()
                    for n, m in zip(names, modules, strict=True)
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
    model, decoder, plan = setup("0.3")
    originals = {p.name: weight(model, p).clone() for p in decoder.projections}
    for outcome in execute(model, decoder, plan, Unweighted()):
        install(model, outcome)
    store = MomentStore()
    for block, moments in sweep(model, decoder, IDS[:1, :8], Statistics(gram=True), dtype=torch.float32):
        store.put(block, moments)
    ridges = refit(model, decoder, plan, originals, store)
    assert set(ridges) == {names[0] for names in members_of(plan)}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
