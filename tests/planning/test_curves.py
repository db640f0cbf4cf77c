import errno
import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from basis_sharing.planning import curves as module
from basis_sharing.planning.curves import stored_curves

FIRST, SECOND = ("model.layers.0.q", "model.layers.0.k"), ("model.layers.1.q",)


def test_curves_come_back_bit_for_bit(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random(5)
    with stored_curves(tmp_path) as curves:
        curves[FIRST] = losses
        assert np.array_equal(curves[FIRST], losses)
    with stored_curves(tmp_path) as curves:
        assert np.array_equal(curves[FIRST], losses)
        assert (list(curves), len(curves)) == ([FIRST], 1)
        assert SECOND not in curves
        curves[SECOND] = losses
        del curves[FIRST]
        assert list(curves) == [SECOND]
        with pytest.raises(KeyError):
            del curves[FIRST]


def test_an_interrupted_run_leaves_what_it_measured(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), stored_curves(tmp_path) as curves:
        curves[FIRST] = np.ones(3)
        raise KeyboardInterrupt
    with stored_curves(tmp_path) as curves:
        assert FIRST in curves


def test_curves_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", -1.0)
    with stored_curves(tmp_path) as curves, stored_curves(tmp_path) as other:
        curves[FIRST] = np.ones(3)
        assert FIRST in other


@pytest.mark.parametrize("content", [b"no database " * 100, b"SQLite format 3\x00" + bytes(50)])
def test_a_damaged_file_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "curves.sqlite").write_bytes(content)
    with stored_curves(tmp_path) as curves:
        assert len(curves) == 0
        curves[FIRST] = np.ones(3)
    with stored_curves(tmp_path) as curves:
        assert len(curves) == 1


def test_a_file_that_another_run_holds_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with stored_curves(tmp_path):
        pass
    holder = sqlite3.connect(tmp_path / "curves.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match="locked"), stored_curves(tmp_path):
        pass
    holder.close()


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with stored_curves(tmp_path):
        pass
    with ExitStack() as stack:
        curves = stack.enter_context(stored_curves(tmp_path))
        curves._database.execute("PRAGMA max_page_count = 1")
        curves[FIRST] = np.ones(100_000)
        with pytest.raises(OSError, match="full") as failed:
            stack.pop_all().close()
    assert failed.value.errno == errno.ENOSPC
