"""What a run settles once is there for the next one."""

from pathlib import Path

import pytest

from basis_sharing.repair.segments import Schedule
from basis_sharing.run.durable import load_or_create


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"minutes": 3}'])
def test_what_is_settled_is_kept_unless_it_is_damaged(damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    assert load_or_create(file, Schedule, lambda: Schedule(48, 2)) == Schedule(48, 2)
    assert load_or_create(file, Schedule, lambda: Schedule(16, 1)) == Schedule(48, 2)
    file.write_text(damaged)
    assert load_or_create(file, Schedule, lambda: Schedule(16, 1)) == Schedule(16, 1)
    assert load_or_create(file, Schedule, lambda: Schedule(48, 2)) == Schedule(16, 1)


def test_without_a_file_it_is_settled_every_time() -> None:
    assert load_or_create(None, Schedule, lambda: Schedule(16, 1)) == Schedule(16, 1)
