import os
from pathlib import Path

import pytest
import torch

from basis_sharing.models.decoder import describe
from basis_sharing.runtime.surgery import GroupFactors, install_factors
from basis_sharing.treatments.factors.files import read_outcome, write_outcome
from basis_sharing.treatments.factors.outcome import GroupOutcome
from pico import PICO


def outcome(pivoted: bool, dtype: torch.dtype = torch.float32) -> GroupOutcome:
    torch.manual_seed(0)
    owners = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    pivots = torch.tensor([1, 5, 9]) if pivoted else None
    basis = torch.randn(64 - 3 * pivoted, 3, dtype=dtype)
    factors = GroupFactors(owners, basis, tuple(torch.randn(3, 64, dtype=dtype) for _ in owners), pivots)
    return GroupOutcome(factors, 0.1, 1 / 3, 1e-8, "a reason" if pivoted else None)


@pytest.mark.parametrize("pivoted", [False, True])
def test_an_outcome_comes_back(pivoted: bool, tmp_path: Path) -> None:
    written, file = outcome(pivoted, torch.bfloat16), tmp_path / "group.safetensors"
    write_outcome(written, file)
    found = read_outcome(file)
    assert found is not None
    assert (found.loss, found.relative_loss, found.ridge, found.not_pivoted) == (
        (written.loss, written.relative_loss, written.ridge, written.not_pivoted)
    )
    assert found.factors.members == written.factors.members
    assert torch.equal(found.factors.basis, written.factors.basis)
    for C, D in zip(found.factors.coefficients, written.factors.coefficients, strict=True):
        assert torch.equal(C, D)
    if pivoted:
        assert torch.equal(found.factors.pivots, written.factors.pivots)
    else:
        assert found.factors.pivots is None


def test_a_model_uses_the_factors_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "group.safetensors"
    write_outcome(outcome(pivoted=False), file)
    found = read_outcome(file)
    assert found is not None
    model = PICO["llama"]()
    assert describe(model).blocks
    install_factors(model, found.factors)
    module = model.get_submodule(found.factors.members[1])
    assert module.coeff.weight.data_ptr() == found.factors.coefficients[1].data_ptr()
    assert module.basis.weight.data_ptr() == found.factors.basis.data_ptr()


def test_what_is_not_there_or_damaged_is_none(tmp_path: Path) -> None:
    file = tmp_path / "group.safetensors"
    assert read_outcome(file) is None
    write_outcome(outcome(pivoted=False), file)
    os.truncate(file, file.stat().st_size // 2)
    assert read_outcome(file) is None
    os.truncate(file, 3)
    assert read_outcome(file) is None
