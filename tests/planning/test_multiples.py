"""What ranks are multiples of: given, or chosen from times."""

from collections.abc import Callable

import pytest
import torch

from basis_sharing.costs import products
from basis_sharing.costs.products import Operation
from basis_sharing.costs.stopwatch import Measured
from basis_sharing.costs.time import Time, Workload
from basis_sharing.costs.time_table import TimedOn, TimeTable
from basis_sharing.models.family import Decoder, Family, Projection
from basis_sharing.planning.multiples import Multiples, multiples_for
from basis_sharing.recipe.planning import Planning

FAMILY = Family("made up", (), "layers", {}, (), "")


def decoder(*shapes: tuple[int, int]) -> Decoder:
    projections = [Projection(f"layers.0.{i}", 0, "up", "x", *shape, False, False) for i, shape in enumerate(shapes)]
    return Decoder(FAMILY, ("layers.0",), tuple(projections))


def chosen(monkeypatch: pytest.MonkeyPatch, rate: Callable[[int], float], *shapes: tuple[int, int]) -> Multiples:
    """Return the multiples on a machine whose products have a rate that depends on the divisor of their sizes."""

    def seconds(one: Operation) -> float:
        divisor = next(m for m in (128, 64, 32, 16, 8, 1) if one.d_in % m == one.d_out % m == 0)
        return one.rows * one.d_in * one.d_out / rate(divisor) if one.d_out else 0.0

    monkeypatch.setattr(
        products, "measured_operations", lambda ops, *_, **__: {one: Measured(seconds(one)) for one in ops}
    )
    table = TimeTable(TimedOn("cpu", "", 1, "float32", "2", 1), torch.device("cpu"))
    times = [Time(table, Workload("prefill", 64)), Time(table, Workload("decode", 64))]
    return multiples_for(Planning(), decoder(*shapes), times)


@pytest.mark.parametrize(
    ("fast_from", "found"),
    [(1, (1, 1, 1, 1)), (16, (16, 8, 1, 16)), (64, (16, 8, 1, 64)), (128, (16, 8, 1, 128))],
)
def test_the_smallest_multiple_that_is_fast(
    fast_from: int, found: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A side of 576 has 24 multiples of 24, so 16 is the coarsest; one of 192 has 24 of 8; one of 96 has all ranks."""
    shapes = ((576, 1536), (576, 192), (96, 96), (4096, 11008))
    multiples = chosen(monkeypatch, lambda divisor: min(1.0, divisor / fast_from), *shapes)
    assert tuple(multiples.of_shape[shape] for shape in shapes) == found


def test_the_other_inputs_are_a_multiple_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    multiples = chosen(monkeypatch, float, (4096 + 32, 8192))
    assert multiples.of_shape == {(4128, 8192): 32}


def test_a_group_has_the_largest_multiple_of_its_projections() -> None:
    multiples = Multiples({(64, 64): 16, (64, 32): 8})
    first, second = decoder((64, 64), (64, 32)).projections
    assert (multiples([first]), multiples([second]), multiples([first, second])) == (16, 8, 16)
    assert str(multiples) == "8 to 16"
    assert multiples.rounds
    assert not Multiples({(64, 64): 1}).rounds


def test_a_given_multiple_holds_for_all_shapes() -> None:
    assert multiples_for(Planning(rank_multiple=4), decoder((8, 8), (8, 4)), []).of_shape == {(8, 8): 4, (8, 4): 4}


def test_few_enough_ranks_to_time_all_of_them() -> None:
    bounded = Multiples({(576, 576): 1, (4096, 4096): 16, (100, 30): 1, (300, 300): 3}).bounded()
    assert bounded.of_shape == {(576, 576): 16, (4096, 4096): 128, (100, 30): 1, (300, 300): 12}
