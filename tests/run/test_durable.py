"""What a run settles once is there for the next one."""

from pathlib import Path

import pytest

from basis_sharing.repair.segments import Schedule
from basis_sharing.run.durable import settled_once


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"minutes": 3}'])
def test_what_is_settled_is_kept_unless_it_is_damaged(damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    assert settled_once(file, Schedule, lambda: Schedule(48, 2)) == Schedule(48, 2)
    assert settled_once(file, Schedule, lambda: Schedule(16, 1)) == Schedule(48, 2)
    file.write_text(damaged)
    assert settled_once(file, Schedule, lambda: Schedule(16, 1)) == Schedule(16, 1)
    assert settled_once(file, Schedule, lambda: Schedule(48, 2)) == Schedule(16, 1)


def test_without_a_file_it_is_settled_every_time() -> None:
    assert settled_once(None, Schedule, lambda: Schedule(16, 1)) == Schedule(16, 1)
