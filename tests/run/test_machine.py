"""Where a run works: sizes, devices, and what a budget leaves room for."""

import mmap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from basis_sharing.errors import MemoryBudgetError, RecipeError
from basis_sharing.run.machine import Machine, default_memory, machine_for, parsed_size, taken_memory, written


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 * 2**30), ("800MB", 800 * 10**6), ("1.5 GiB", 3 * 2**29), (4096, 4096), ("512MiB", 2**29)],
)
def test_sizes_are_read_with_their_units(text: str | int, size: int) -> None:
    assert parsed_size(text) == size


@pytest.mark.parametrize("text", ["much", "-1GiB", "0", "", "6 GiBs", 0])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(RecipeError, match="write e"):
        parsed_size(text)


def test_a_size_is_written_rounded_up_and_can_be_read_again() -> None:
    for size in (1, 2**20, 5 * 2**30 + 1, 10 * 2**30, 10 * 2**30 + 1):
        assert parsed_size(written(size)) >= size


def test_a_control_group_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * 2**30))
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("basis_sharing.run.machine._CONTROL_GROUPS", (str(limit),))
    limit.write_text("max\n", encoding="ascii")
    free = default_memory()
    limit.write_text(f"{2**30}\n", encoding="ascii")
    limited = default_memory()
    assert 7 * 2**30 > free - limited > 4 * 2**30


def test_taken_memory_grows_with_what_is_allocated_and_not_with_files(tmp_path: Path) -> None:
    before = taken_memory()
    mine = mmap.mmap(-1, 32 * 2**20, flags=mmap.MAP_PRIVATE)  # the C library may have room for tensors already
    mine.write(b"1" * len(mine))
    assert taken_memory() - before > 24 * 2**20
    torch.zeros(32 * 2**20, dtype=torch.uint8).numpy().tofile(tmp_path / "file")
    after = taken_memory()
    mapped = torch.from_file(str(tmp_path / "file"), shared=True, size=32 * 2**20, dtype=torch.uint8)
    assert int(mapped.sum()) == 0
    assert taken_memory() - after < 8 * 2**20
    assert len(mine) == mapped.numel()


def test_a_budget_is_refused_with_the_smallest_that_can_work() -> None:
    machine = Machine(memory=100 * 2**20)
    with pytest.raises(MemoryBudgetError, match=r"100MiB of memory are too little.*--max-memory 201MiB"):
        machine.needing(200 * 2**20 + 1)
    assert machine.needing(60 * 2**20).spare == 40 * 2**20


def test_what_does_not_fit_beside_the_rest_goes_into_files() -> None:
    machine = Machine(memory=10 * 2**30).needing(9 * 2**30)
    for holds in (machine.holds_states, machine.holds_inputs, machine.holds_moments):
        assert holds(2**28)
        assert not holds(2**29)
    assert machine.whitening_bytes < 2**28 < Machine(memory=2**40).whitening_bytes + 1
    assert 64 * 2**20 <= machine.shard_bytes <= 2**28


def test_devices_are_chosen_by_name_or_from_the_model() -> None:
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    assert machine_for(None, None, model).device.type == "cpu"
    assert machine_for("cpu", "6GiB", "a folder") == Machine(memory=6 * 2**30)
    with pytest.raises(RecipeError, match="unknown device 'tpu'"):
        machine_for("tpu", None, model)
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="finds no cuda device"):
            machine_for("cuda", None, model)


def test_what_has_no_fp64_decomposes_on_the_cpu() -> None:
    assert Machine(torch.device("mps")).algebra.type == "cpu"
    assert Machine(torch.device("cuda")).algebra.type == "cuda"
