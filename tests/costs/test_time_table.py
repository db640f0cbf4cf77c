"""Tables of times: kept by machine, never taken from another one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from basis_sharing.costs import products
from basis_sharing.costs.products import Operation
from basis_sharing.costs.stopwatch import Measured, Reference, measure, summary
from basis_sharing.costs.time_table import TimedOn, TimeTable, default_file
from basis_sharing.errors import RecipeError

HERE = TimedOn("cpu", "a processor", 1, "float32", "2", 2**20)
CPU = torch.device("cpu")
SIZES = (Operation(4, 8, 8), Operation(4, 8))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """Return the list of operations that were measured; their time is their place in it."""
    measured: list[Operation] = []

    def measured_operations(wanted: Sequence[Operation], *_: Any, **__: Any) -> dict[Operation, Measured]:
        measured.extend(wanted)
        return {one: Measured(float(measured.index(one) + 1)) for one in wanted}

    monkeypatch.setattr(products, "measured_operations", measured_operations)
    return measured


def test_what_is_measured_is_kept_and_only_what_is_missing_measured(asked: list[Operation], tmp_path: Path) -> None:
    file = tmp_path / "folder" / "times.json"
    TimeTable.opened(HERE, CPU, file).measure([*SIZES, *SIZES])
    assert asked == list(SIZES)
    again = TimeTable.opened(HERE, CPU, file)
    assert [again.seconds(one) for one in SIZES] == [1.0, 2.0]
    assert again.seconds(Operation(4, 8, 9)) == 3.0
    assert len(asked) == 3
    assert again.notes == []
    assert again.of_model("a model", lambda device: Measured(7.0)) == 7.0
    assert TimeTable.opened(HERE, CPU, file).of_model("a model", lambda device: Measured(8.0)) == 7.0


@pytest.mark.parametrize("change", [{"name": "another"}, {"threads": 2}, {"dtype": "bfloat16"}, {"version": "3"}])
def test_times_of_another_machine_are_measured_anew_and_it_is_said(
    change: dict[str, Any], asked: list[Operation], tmp_path: Path
) -> None:
    other = replace(HERE, **change)
    assert default_file(other) != default_file(HERE)
    TimeTable.opened(other, CPU, tmp_path / "times.json").measure(SIZES)
    table = TimeTable.opened(HERE, CPU, tmp_path / "times.json")
    (note,) = table.notes
    assert "measured anew" in note
    assert str(other) in note
    table.measure(SIZES)
    assert len(asked) == 4


def test_what_was_measured_on_a_busy_machine_is_said_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unsteady = Measured(1.0, spread=0.5, steady=False)
    monkeypatch.setattr(products, "measured_operations", lambda wanted, *_, **__: dict.fromkeys(wanted, unsteady))
    table = TimeTable.opened(HERE, CPU, tmp_path / "times.json")
    table.measure(SIZES)
    assert table.seconds(SIZES[0]) == 1.0
    assert ["busy" in note for note in table.notes] == [True]
    assert json.loads((tmp_path / "times.json").read_text())["times"] == {}


def test_a_table_of_a_device_that_is_not_here_is_used_but_not_added_to(asked: list[Operation], tmp_path: Path) -> None:
    TimeTable.opened(HERE, CPU, tmp_path / "times.json").measure(SIZES)
    table = TimeTable.elsewhere(tmp_path / "times.json")
    assert table.machine == HERE
    assert table.seconds(SIZES[0]) == 1.0
    with pytest.raises(RecipeError, match="have none for 4 x 8 -> 9, and this machine has no cpu"):
        table.seconds(Operation(4, 8, 9))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2}', '{"version": 2, "machine": {}, "times": {}}', "\x00"]
)
def test_what_is_no_table(content: str, tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(content)
    with pytest.raises(RecipeError, match="is no file of times"):
        TimeTable.opened(HERE, CPU, tmp_path / "times.json")
    with pytest.raises(RecipeError, match="cannot be read"):
        TimeTable.elsewhere(tmp_path / "nowhere.json")
    for version, words in ((99, "newer version"), (1, "older version")):
        (tmp_path / "times.json").write_text(json.dumps({"version": version, "machine": {}, "times": {}}))
        with pytest.raises(RecipeError, match=words):
            TimeTable.elsewhere(tmp_path / "times.json")


def test_what_other_programs_disturb_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopwatch takes more rounds while the machine is crowded, and says so when it stays crowded."""
    calls: list[int] = []
    crowded = iter([True, True, True, False, False, *[True] * 20])
    monkeypatch.setattr("basis_sharing.costs.stopwatch.Crowding.crowded", lambda _: next(crowded))
    monkeypatch.setattr("basis_sharing.costs.stopwatch._timer", lambda *_: lambda: calls.append(1) or 1.0)
    assert measure({"a": lambda: None}, CPU)["a"] == Measured(1.0, 0.0, steady=True)
    assert len(calls) == 5
    assert not measure({"a": lambda: None}, CPU)["a"].steady
    assert len(calls) == 5 + 8


def test_times_are_taken_beside_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine does more slowly for a while, action and reference alike, changes no time."""
    pace = iter([1.0] * 3 + [1.5] * 3 + [3.0] * 3)
    speeds = {"action": 0.4, "reference": 0.1}
    monkeypatch.setattr("basis_sharing.costs.stopwatch._timer", lambda action, _: lambda: next(pace) * speeds[action()])
    reference = Reference(lambda: "reference", 0.2)
    found = measure({"a": lambda: "action"}, CPU, references={"a": reference})
    assert found["a"].seconds == pytest.approx(0.8)
    assert found["a"].steady


@pytest.mark.parametrize(
    ("rounds", "middle", "seconds"),
    [([1, 2, 2.1], False, 1.5), ([1, 2, 2.1], True, 2.05), ([1, 1.1, 5], True, 1.05), ([1, 2], True, 1.5)],
)
def test_two_rounds_count(rounds: list[float], middle: bool, seconds: float) -> None:
    assert summary([(one, True) for one in rounds], middle=middle).seconds == pytest.approx(seconds)


def test_what_a_plan_chose_is_measured_again_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fastest of many options are those whose times erred most: thoroughly measured, they are slower."""
    calls: list[bool] = []

    def measured_operations(wanted: Sequence[Operation], *_: Any, thorough: bool) -> dict[Operation, Measured]:
        calls.append(thorough)
        return {one: Measured(1.2 if thorough else 1.0, thorough=thorough) for one in wanted}

    monkeypatch.setattr(products, "measured_operations", measured_operations)
    table = TimeTable.opened(HERE, CPU, tmp_path / "times.json")
    table.measure(SIZES)
    assert table.measure_again(SIZES[:1]) == pytest.approx(0.2 / 1.2)
    assert (table.seconds(SIZES[0]), table.seconds(SIZES[1])) == (1.2, 1.0)
    assert table.measure_again(SIZES[:1]) == 0.0
    assert TimeTable.opened(HERE, CPU, tmp_path / "times.json").measure_again(SIZES[:1]) == 0.0
    assert TimeTable.elsewhere(tmp_path / "times.json").measure_again(SIZES) == 0.0
    assert calls == [False, True]
