"""The paired difference against its definitions."""

import itertools
import math
import random

import pytest

from basis_sharing.results.paired import paired_difference, sign_test


def test_small_numbers_by_hand() -> None:
    found = paired_difference([True, True, True, False], [True, False, False, True])
    assert (found.examples, found.only_first, found.only_second, found.difference) == (4, 2, 1, -0.25)
    assert found.standard_error == pytest.approx(math.sqrt((1 + 1 + 1 - 4 * 0.25**2) / 3 / 4))
    assert found.p_value == 1  # three tosses never split more evenly than two to one


def test_the_error_is_that_of_the_differences() -> None:
    generator = random.Random(0)
    first, second = ([generator.random() < share for _ in range(200)] for share in (0.6, 0.5))
    differences = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / 200
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 199 / 200)
    found = paired_difference(first, second)
    assert found.difference == pytest.approx(mean)
    assert found.standard_error == pytest.approx(error)
    assert found.difference == pytest.approx(sum(second) / 200 - sum(first) / 200)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (0, 6), (2, 7), (5, 5), (9, 3)])
def test_the_test_counts_all_tosses(first: int, second: int) -> None:
    extreme = abs(first - second)
    tosses = list(itertools.product((1, -1), repeat=first + second))
    as_uneven = sum(abs(sum(toss)) >= extreme for toss in tosses)
    assert sign_test(first, second) == as_uneven / len(tosses)


def test_large_numbers_do_not_overflow() -> None:
    assert sign_test(2000, 2000) == 1.0
    assert 0 < sign_test(1900, 2100) < 0.01
    assert sign_test(0, 3000) == 0.0


def test_equal_models_differ_by_nothing() -> None:
    found = paired_difference([True, False], [True, False])
    assert (found.difference, found.standard_error, found.p_value) == (0, 0, 1)
    assert paired_difference([True], [False]).standard_error is None


def test_other_examples_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="one model has 1 and the other 2"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="one model has 0"):
        paired_difference([], [])
