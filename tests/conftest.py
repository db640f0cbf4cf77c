"""Settings of all tests."""

import os

# Pico models are too small to share between threads, and xdist already uses every core; processes that tests start
# inherit it, where waiting threads would cost them most.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tempfile
from collections.abc import Iterator
from typing import Any

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="basis-sharing-tests-")  # measured times are kept there

import pytest
import torch

from basis_sharing.costs import products
from basis_sharing.costs.stopwatch import Measured
from basis_sharing.costs.time import Workload
from basis_sharing.models.family import Decoder
from basis_sharing.planning import clock

torch.set_num_threads(1)


def seconds_of(operation: products.Operation) -> float:
    """Return the time of an operation on a machine that nothing disturbs."""
    return 1e-8 + 1e-11 * (operation.rows + 30) * operation.d_in * (operation.d_out or 2)


def seconds_of_model(model: Any, decoder: Decoder, workload: Workload, *_: object) -> Measured:
    """Return the time of a model whose projections take three quarters of it."""
    dense = (seconds_of(products.Operation(workload.rows, p.d_in, p.d_out)) for p in decoder.projections)
    return Measured(sum(dense) / 0.75)


@pytest.fixture(scope="session", autouse=True)
def no_real_times() -> Iterator[None]:
    """Let nothing depend on measured times, fixtures of modules included; tests of them import what measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            products, "measured_operations", lambda wanted, *_, **__: {one: Measured(seconds_of(one)) for one in wanted}
        )
        patch.setattr(clock, "time_of_model", seconds_of_model)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the real model: its tests are the longest, and nobody should wait for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("real_model") is None)
