from pathlib import Path

import pytest
import torch

from basis_sharing.run.resume import ResumePoint


class Clock:
    """A clock that a tick moves on, each time it is read."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    states, found = torch.randn(3, 4), torch.zeros(3, 4)
    file = tmp_path / "states.unfinished"
    assert ResumePoint(file).resume(found) == 0
    ResumePoint(file).reach(7, states)
    assert ResumePoint(file).resume(found) == 7
    assert torch.equal(found, states)
    ResumePoint(file).reach(8)
    assert ResumePoint(file).resume() == 8


def test_writing_takes_a_twentieth_of_the_time(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "states.unfinished"
    point = ResumePoint(file, clock=clock)
    clock.tick = 1.0  # writing takes a second
    point.reach(1)
    clock.tick = 0.0
    clock.now += 19.0
    point.reach(2)
    assert ResumePoint(file).resume() == 1
    clock.now += 1.5
    point.reach(3)
    assert ResumePoint(file).resume() == 3


@pytest.mark.parametrize("content", [b"", b"not a tensor at all"])
def test_a_damaged_file_is_no_point_to_go_on_from(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "states.unfinished"
    file.write_bytes(content)
    states = torch.ones(2)
    assert ResumePoint(file).resume(states) == 0
    assert torch.equal(states, torch.ones(2))


def test_states_of_another_shape_are_no_point_to_go_on_from(tmp_path: Path) -> None:
    file = tmp_path / "states.unfinished"
    ResumePoint(file).reach(7, torch.ones(3, 4))
    states = torch.zeros(2, 4)
    assert ResumePoint(file).resume(states) == 0
    assert torch.equal(states, torch.zeros(2, 4))


def test_without_a_file_nothing_is_kept() -> None:
    point = ResumePoint(None)
    point.reach(3, torch.ones(2))
    assert point.resume() == 0
