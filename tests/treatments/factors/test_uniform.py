"""Grouping and ranks of the published methods."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basis_sharing.errors import PlanError
from basis_sharing.models.decoder import describe
from basis_sharing.models.families import FAMILIES
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.factors.uniform import uniform_plan, uniform_rank
from pico import PICO


@pytest.mark.parametrize(
    ("d_in", "d_outs", "rank"),
    [
        (576, (576, 576), 307),
        (576, (192, 192), 184),
        (576, (1536, 1536), 388),
        (576, (576,), 230),
        (1536, (576,), 335),
        (4096, (4096, 4096), 2184),
    ],
)
def test_the_authors_ranks_at_20_percent(d_in: int, d_outs: tuple[int, ...], rank: int) -> None:
    assert uniform_rank(d_in, d_outs, Fraction("0.2")) == rank


@given(d_in=st.integers(1, 5000), d_out=st.integers(1, 5000), n=st.integers(1, 6), r=st.integers(1, 99))
def test_a_group_never_keeps_more_than_its_share(d_in: int, d_out: int, n: int, r: int) -> None:
    ratio = Fraction(r, 100)
    rank = uniform_rank(d_in, [d_out] * n, ratio)
    budget = d_in * d_out * n * (1 - ratio)
    assert rank * (d_in + n * d_out) <= budget < (rank + 1) * (d_in + n * d_out)
    assert rank < d_in
    pivoted = uniform_rank(d_in, [d_out] * n, ratio, "pivoted")
    assert rank <= pivoted < d_in

    def stored(rank: int) -> int:
        return rank * (d_in + n * d_out) - rank**2

    assert stored(pivoted) <= budget
    assert pivoted + 1 >= min(d_in, n * d_out) or stored(pivoted + 1) > budget


def plan_of(name: str, group_size: int = 2, ratio: str = "0.2") -> Plan:
    decoder = describe(PICO[name]())
    plan = uniform_plan(
        decoder,
        method="basis-sharing",
        ratio=Fraction(ratio),
        group_size=group_size,
        shared_roles=decoder.family.shared_roles,
    )
    plan.check(decoder)
    return plan


def test_pairs_and_a_smaller_last_group() -> None:
    q = [entry.members for entry in plan_of("llama").entries if "q_proj" in entry.owner]
    layers = [tuple(int(name.split(".")[2]) for name in members) for members in q]
    assert layers == [(0, 1), (2, 3), (4,)]


@pytest.mark.parametrize("name", PICO)
def test_private_roles_stay_private_and_all_layers_are_covered(name: str) -> None:
    decoder = describe(PICO[name]())
    roles = {projection.name: projection.role for projection in decoder.projections}
    for entry in plan_of(name).entries:
        assert len({roles[member] for member in entry.members}) == 1
        if roles[entry.owner] not in decoder.family.shared_roles:
            assert len(entry.members) == 1
    assert sorted(n for entry in plan_of(name).entries for n in entry.members) == sorted(roles)


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("ratio", ["0.1", "0.5"])
def test_at_least_the_asked_ratio_is_removed(name: str, ratio: str) -> None:
    decoder = describe(PICO[name]()).without_experts
    assert plan_of(name, ratio=ratio).removed_fraction(decoder) >= float(ratio)


def test_share_tables_of_the_paper() -> None:
    tables = {family.name: set(family.shared_roles) for family in FAMILIES}
    assert tables["llama"] == {"q", "k", "v", "gate", "up"}
    assert tables["mistral"] == {"q", "gate", "up"}
    assert tables["opt"] == {"q", "k", "v", "up"}
    assert tables["gpt2"] == {"qkv", "up", "o"}


def test_a_matrix_too_small_to_compress_is_named() -> None:
    decoder = describe(PICO["llama"]())
    with pytest.raises(PlanError, match=r"model\.layers\.0\..* is too small for ratio 0\.999"):
        uniform_plan(decoder, method="svd", ratio=Fraction("0.999"), group_size=1, shared_roles=())


def test_bad_plans_are_refused_in_one_sentence() -> None:
    decoder = describe(PICO["llama"]())
    q, k, down = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"

    def plan(*groups: tuple[tuple[str, ...], int]) -> Plan:
        entries = tuple(Factors(members=members, rank=rank) for members, rank in groups)
        return Plan(method="svd", ratio=0.2, entries=entries)

    with pytest.raises(PlanError, match="which this model does not have"):
        plan((("model.layers.9.self_attn.q_proj",), 4)).check(decoder)
    with pytest.raises(PlanError, match="belongs to two entries"):
        plan(((q,), 4), ((q, k), 4)).check(decoder)
    with pytest.raises(PlanError, match="mixes inputs"):
        plan(((q, down), 4)).check(decoder)
    with pytest.raises(PlanError, match="rank 65"):
        plan(((q,), 65)).check(decoder)
