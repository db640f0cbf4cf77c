import os
from pathlib import Path

import pytest
import torch

from basis_sharing.treatments.base import Outcome, install
from basis_sharing.treatments.factors.outcome import GroupFactors, factors_of
from basis_sharing.treatments.outcome_files import read_outcome, write_outcome
from pico import PICO


def outcome(pivoted: bool, dtype: torch.dtype = torch.float32) -> Outcome:
    torch.manual_seed(0)
    owners = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    pivots = torch.tensor([1, 5, 9]) if pivoted else None
    basis = torch.randn(64 - 3 * pivoted, 3, dtype=dtype)
    factors = GroupFactors(owners, basis, tuple(torch.randn(3, 64, dtype=dtype) for _ in owners), pivots)
    notes = ("what a reader has to know",) if pivoted else ()
    return Outcome(factors.entry(), factors.tensors(), 0.1, 1 / 3, 1e-8, notes)


@pytest.mark.parametrize("pivoted", [False, True])
def test_an_outcome_comes_back(pivoted: bool, tmp_path: Path) -> None:
    written, file = outcome(pivoted, torch.bfloat16), tmp_path / "entry.safetensors"
    write_outcome(written, file)
    found = read_outcome(file)
    assert found is not None
    assert (found.loss, found.relative_loss, found.ridge, found.notes) == (
        (written.loss, written.relative_loss, written.ridge, written.notes)
    )
    assert found.entry == written.entry
    assert found.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in written.tensors.items())
    ours, theirs = factors_of(found), factors_of(written)
    assert ours.members == theirs.members
    assert torch.equal(ours.basis, theirs.basis)
    for C, D in zip(ours.coefficients, theirs.coefficients, strict=True):
        assert torch.equal(C, D)
    if pivoted:
        assert ours.pivots is not None
        assert ours.pivots.tolist() == [1, 5, 9]
    else:
        assert ours.pivots is None


def test_a_model_uses_the_factors_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "entry.safetensors"
    write_outcome(outcome(pivoted=False), file)
    found = read_outcome(file)
    assert found is not None
    model = PICO["llama"]()
    install(model, found)
    owner, member = found.entry.members
    module = model.get_submodule(member)
    assert module.coeff.weight.data_ptr() == found.tensors[f"{member}.weight"].data_ptr()
    assert module.basis.weight.data_ptr() == found.tensors[f"{owner}.basis.weight"].data_ptr()


def test_what_is_not_there_or_damaged_is_none(tmp_path: Path) -> None:
    file = tmp_path / "entry.safetensors"
    assert read_outcome(file) is None
    write_outcome(outcome(pivoted=False), file)
    os.truncate(file, file.stat().st_size // 2)
    assert read_outcome(file) is None
    os.truncate(file, 3)
    assert read_outcome(file) is None
