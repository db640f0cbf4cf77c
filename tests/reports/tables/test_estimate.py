"""What a run will need."""

from pathlib import Path

import pytest

from basis_sharing.reports.tables.estimate import duration, estimate_table
from samples import estimate


def test_an_estimate() -> None:
    table = estimate_table(estimate(), Path())
    assert table.rows == (("calibrate", "20 s", "257MiB"), ("plan", "3.0 h", "1280MiB"))
    assert table.footer == ("in all", "3.0 h", "2048MiB")
    assert table.notes[0] == "Text: 6 calibration windows of 64 tokens, divided among 2 processes."


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, "1 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
