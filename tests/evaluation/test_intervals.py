"""Confidence intervals against textbook values."""

import math

import pytest

from basis_sharing.evaluation.intervals import loss_difference, mean_interval


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (11, 2.228), (101, 1.984)])
def test_it_is_students_t(count: int, quantile: float) -> None:
    values = [float(i % 2) + i / 100 for i in range(count)]
    mean = sum(values) / count
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
    interval = mean_interval(values)
    assert interval is not None
    assert (interval.low + interval.high) / 2 == pytest.approx(mean)
    assert (interval.high - interval.low) / 2 / error == pytest.approx(quantile, rel=1e-3)


def test_one_value_has_none() -> None:
    assert mean_interval([1.0]) is None
    found = loss_difference([2.0], [2.5])
    assert found.nats_interval is None
    assert found.quotient_interval is None
    assert found.quotient == pytest.approx(math.exp(0.5))


def test_windows_are_paired() -> None:
    found = loss_difference([1.0, 3.0, 8.0], [1.1, 3.1, 8.1])
    assert found.nats_per_token == pytest.approx(0.1)
    assert found.nats_interval is not None
    assert found.nats_interval.high - found.nats_interval.low < 1e-9  # the windows differ a lot, the rise does not
    assert found.quotient == pytest.approx(math.exp(0.1))


def test_a_ruined_model_has_a_finite_quotient() -> None:
    assert math.isfinite(loss_difference([1.0, 1.0], [5000.0, 6000.0]).quotient)
