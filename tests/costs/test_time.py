"""The cost ``time``: looked up in a table of measured times, never computed from multiplications."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from basis_sharing.costs.products import Operation, measured_operations, reference_of, reference_product
from basis_sharing.costs.stopwatch import Measured
from basis_sharing.costs.time import Phase, Time, Workload
from basis_sharing.costs.time_table import TimedOn, TimeTable
from basis_sharing.models.decoder import describe
from basis_sharing.planning.model_times import time_of_model
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.factors.options import worthwhile
from conftest import seconds_of
from pico import PICO

MACHINE = TimedOn("cpu", "a processor", 1, "float32", "2", 2**20)
PREFILL = Workload("prefill", 16, 1)


def time_of(workload: Workload = PREFILL) -> Time:
    return Time(TimeTable(MACHINE, torch.device("cpu")), workload, 1.0)


@pytest.mark.parametrize("workload", [PREFILL, Workload("decode", 16, 4)])
def test_an_option_takes_as_long_as_its_products_and_the_order_of_its_inputs(workload: Workload) -> None:
    q, k = describe(PICO["llama"]()).projections[:2]
    rows = {"prefill": 16, "decode": 4}[workload.phase]
    cost = time_of(workload)
    parts = [Operation(rows, q.d_in - 5, 5), Operation(rows, 5, q.d_out), Operation(rows, 5, k.d_out)]
    plain = [Operation(rows, q.d_in, 5), *parts[1:]]
    rests = [Operation(rows, q.d_in, orders=True)]  # q and k read one input
    option = Factors(members=(q.name, k.name), rank=5, form="pivoted")
    assert cost.of([q, k], option) == pytest.approx(sum(map(seconds_of, parts + rests)))
    option = Factors(members=(q.name, k.name), rank=5, form="plain")
    assert cost.of([q, k], option) == pytest.approx(sum(map(seconds_of, plain)))
    assert cost.dense([q, k]) == sum(seconds_of(Operation(rows, p.d_in, p.d_out)) for p in (q, k))


@pytest.mark.parametrize("form", ["plain", "pivoted"])
def test_many_options_at_once_take_what_each_of_them_takes(form: str) -> None:
    q = describe(PICO["llama"]()).projections[:1]
    options, cost = worthwhile(q, "pivoted" if form == "pivoted" else "plain"), time_of()
    together = cost.of(q, options)
    assert np.allclose(together, [cost.of(q, option) for option in options])
    needed = set(cost.needed(q, [options]))
    assert needed == {one for option in options for one in cost.needed(q, [option])}


def test_parts_of_a_group_take_together_what_it_takes() -> None:
    scope = describe(PICO["llama"]()).projections[:3]
    option, cost = Factors(members=tuple(p.name for p in scope), rank=7, form="pivoted"), time_of()
    assert sum(cost.share(p, scope, option) for p in scope) == pytest.approx(cost.of(scope, option))


def test_the_projections_and_the_rest_make_the_whole_model() -> None:
    model = PICO["llama"]()
    decoder, cost = describe(model), time_of()
    assert cost.whole(cost.dense(decoder.projections), model, decoder) == pytest.approx(1.0)
    assert cost.key != time_of(Workload("decode", 16, 1)).key


def test_a_real_table_has_a_time_for_everything_that_was_asked() -> None:
    events: list[Progress] = []
    wanted = [Operation(4, 64, 32), Operation(4, 32, 96), Operation(1, 64, 32), Operation(4, 64)]
    found = measured_operations(wanted, torch.device("cpu"), torch.float32, 2**18, events.append)
    assert set(found) == {*wanted, reference_of(1), reference_of(4)}
    assert all(isinstance(found[one], Measured) and 0 < found[one].seconds < 1 for one in wanted[:3])
    again = measured_operations(
        wanted[:1], torch.device("cpu"), torch.float32, 2**18, events.append, {reference_of(4): 7.0}
    )
    assert again[wanted[0]].seconds > 1000 * found[wanted[0]].seconds  # taken in the time of a reference of 7 seconds
    assert found[wanted[3]].seconds >= 0
    assert events[-1].done == events[-1].total


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_whole_model_is_timed_beside_a_reference(phase: Phase) -> None:
    """Also where the model, and so what is kept out of the caches, is smaller than the reference."""
    model = PICO["llama"]()
    reference = reference_product(8, torch.device("cpu"), torch.float32, 1024, 0.5)
    workload = Workload(phase, 8, 8)
    found = time_of_model(model, describe(model), workload, torch.device("cpu"), lambda event: None, reference)
    faster = time_of_model(
        model, describe(model), workload, torch.device("cpu"), lambda event: None, replace(reference, seconds=0.005)
    )
    assert found.seconds > 10 * faster.seconds > 0
