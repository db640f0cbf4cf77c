"""The options of a scope: which ranks there are, and which are worth choosing from."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basis_sharing.costs.base import shapes_of
from basis_sharing.costs.parameters import Parameters
from basis_sharing.models.family import Projection
from basis_sharing.runtime.entries_basis_sharing import Factors, most_rank
from basis_sharing.treatments.factors.options import all_ranks, worthwhile


def scope_of(d_in: int, d_outs: list[int]) -> tuple[Projection, ...]:
    return tuple(Projection(f"layers.{i}.up", i, "up", "mlp", d_in, d, False, False) for i, d in enumerate(d_outs))


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@given(d_in=st.integers(1, 60), d_outs=st.lists(st.integers(1, 60), min_size=1, max_size=4), multiple=st.integers(1, 9))
def test_worthwhile_ranks_are_all_that_store_less_than_the_dense_weights(
    form: Any, d_in: int, d_outs: list[int], multiple: int
) -> None:
    scope, parameters = scope_of(d_in, d_outs), Parameters()
    names = tuple(p.name for p in scope)
    found = worthwhile(scope, form, multiple)
    expected = [
        Factors(members=names, rank=rank, form=form)
        for rank in range(multiple, most_rank(shapes_of(scope)), multiple)
        if parameters.of(scope, Factors(members=names, rank=rank, form=form)) < parameters.dense(scope)
    ]
    assert list(found) == expected


@given(d_in=st.integers(1, 60), d_outs=st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_all_ranks_end_with_the_highest_useful_one(d_in: int, d_outs: list[int]) -> None:
    scope = scope_of(d_in, d_outs)
    options = all_ranks(scope, "pivoted")
    assert [option.rank for option in options] == list(range(1, min(d_in, sum(d_outs)) + 1))
    options[len(options) - 1].fit(shapes_of(scope))


def test_options_are_a_sequence() -> None:
    options = all_ranks(scope_of(8, [8, 8]), "plain")
    assert [option.rank for option in options[2:5]] == [3, 4, 5]
    assert options[-1] == options[7] == Factors(members=("layers.0.up", "layers.1.up"), rank=8)
    assert isinstance(options[0].rank, int)
    assert Factors(members=("layers.0.up", "layers.1.up"), rank=3) in options
