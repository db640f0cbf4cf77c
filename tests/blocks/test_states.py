from pathlib import Path

import pytest
import torch

from basis_sharing.blocks.states import states_like
from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import Moments, Statistics
from basis_sharing.models.decoder import describe
from basis_sharing.run.machine import Machine
from pico import PICO

POOR = Machine(spare=0)
IDS = torch.randint(0, 250, (3, 16), generator=torch.Generator().manual_seed(0))


def test_states_are_in_memory_where_there_is_room_and_in_a_file_otherwise(tmp_path: Path) -> None:
    shape, file = torch.Size((2, 3, 4)), tmp_path / "states.unfinished"
    assert states_like(shape, torch.float32, file, Machine()).shape == shape
    assert not file.exists()
    states = states_like(shape, torch.bfloat16, file, POOR)
    states.fill_(1.5)
    assert file.stat().st_size == shape.numel() * 2
    assert torch.equal(states_like(shape, torch.bfloat16, file, POOR), states)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_memory_changes_nothing(gradients: bool, dtype: torch.dtype) -> None:
    model = PICO["llama"]()
    decoder = describe(model)

    def found(machine: Machine) -> dict[int, dict[str, Moments]]:
        if gradients:
            return dict(backward_sweep(model, decoder, IDS, dtype=dtype, machine=machine))
        return dict(sweep(model, decoder, IDS, Statistics(gram=True, abs_sum=True), dtype=dtype, machine=machine))

    rich, poor = found(Machine()), found(POOR)
    assert rich.keys() == poor.keys()
    for block, moments in rich.items():
        for name, moment in moments.items():
            for field in ("gram", "abs_sum", "gradient"):
                ours, theirs = getattr(moment, field), getattr(poor[block][name], field)
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)
