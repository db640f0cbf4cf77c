"""Steps in proportion to the weights."""

import pytest
import torch
from torch import nn

from basis_sharing.repair.optimizer import relative_adamw, warm_cosine


def test_the_first_step_is_the_rate_times_the_size_of_each_parameter() -> None:
    parameters = [nn.Parameter(scale * torch.ones(4, 4)) for scale in (1e-3, 1.0, 1e3)]
    optimizer = relative_adamw(parameters, 0.01)
    sum((p / p.detach().abs().mean() ** 2).sum() for p in parameters).backward()
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        assert (old - parameter.detach()).mean().item() == pytest.approx(0.01 * old.mean().item(), rel=1e-2)


def test_the_rate_rises_shortly_and_falls_to_a_tenth() -> None:
    factors = [warm_cosine(100)(step) for step in range(101)]
    assert factors[0] < 1 == max(factors)
    assert factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
