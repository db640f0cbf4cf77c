"""What a run decides once is there for the next one."""

from pathlib import Path

import pytest

from basis_sharing.repair.segments import RepairSchedule
from basis_sharing.run.durable import load_or_create


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"minutes": 3}'])
def test_what_is_decided_is_kept_unless_it_is_damaged(damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    assert load_or_create(file, RepairSchedule, lambda: RepairSchedule(48, 2)) == RepairSchedule(48, 2)
    assert load_or_create(file, RepairSchedule, lambda: RepairSchedule(16, 1)) == RepairSchedule(48, 2)
    file.write_text(damaged)
    assert load_or_create(file, RepairSchedule, lambda: RepairSchedule(16, 1)) == RepairSchedule(16, 1)
    assert load_or_create(file, RepairSchedule, lambda: RepairSchedule(48, 2)) == RepairSchedule(16, 1)


def test_without_a_file_it_is_decided_every_time() -> None:
    assert load_or_create(None, RepairSchedule, lambda: RepairSchedule(16, 1)) == RepairSchedule(16, 1)
