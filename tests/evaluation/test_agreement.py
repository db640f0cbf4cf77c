"""KL divergence and agreement against their definitions; chunks must not matter."""

import math

import pytest
import torch

from basis_sharing.evaluation.agreement import divergence, summarize
from pico import pico_tokenizer


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_it_is_the_definition() -> None:
    first, second = logits([0.0, 1.0, 2.0], [3.0, 0.0, 0.0]), logits([0.5, 0.0, 1.0], [0.0, 2.0, 0.0])
    found = divergence(first, second)
    for row in range(2):
        p = [math.exp(x) / sum(math.exp(y) for y in first[row].tolist()) for x in first[row].tolist()]
        q = [math.exp(x) / sum(math.exp(y) for y in second[row].tolist()) for x in second[row].tolist()]
        assert found.kl[row].item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        assert found.first_probability[row].item() == pytest.approx(max(p))
        assert found.second_probability[row].item() == pytest.approx(max(q))
    assert found.first.tolist() == [2, 0]
    assert found.second.tolist() == [2, 1]


def test_equal_predictions_diverge_by_nothing() -> None:
    same = torch.randn(5, 260, generator=torch.Generator().manual_seed(0))
    assert divergence(same, same.clone()).kl.tolist() == [0.0] * 5
    shifted = divergence(same, same + 3.0)  # logits are defined up to a constant
    assert (shifted.kl >= 0).all()
    assert shifted.kl.max() < 1e-6


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096])
def test_chunks_do_not_change_the_result(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(33, 260, generator=generator) for _ in range(2))
    whole, parts = divergence(first, second, chunk=33), divergence(first, second, chunk=chunk)
    torch.testing.assert_close(parts.kl, whole.kl, rtol=1e-6, atol=0)
    assert torch.equal(parts.first, whole.first)
    assert torch.equal(parts.second, whole.second)


def test_half_precision_is_compared_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 260, generator=generator).bfloat16() for _ in range(2))
    assert torch.equal(divergence(first, second).kl, divergence(first.float(), second.float()).kl)


def test_the_summary_names_the_worst_positions() -> None:
    tokenizer = pico_tokenizer()
    ids = torch.tensor([tokenizer("abcd")["input_ids"], tokenizer("efgh")["input_ids"]])
    x, y = tokenizer("x")["input_ids"][0], tokenizer("y")["input_ids"][0]
    first, second = torch.zeros(2, 3, 260), torch.zeros(2, 3, 260)
    first[:, :, x] = second[:, :, x] = 5.0
    second[1, 1, y] = 9.0
    second[0, 2, y] = 6.0
    windows = [divergence(one, other) for one, other in zip(first, second, strict=True)]
    found = summarize(windows, ids, tokenizer, 10)
    assert found.tokens == 6
    assert found.top1 == pytest.approx(4 / 6)
    assert found.window_top1 == pytest.approx((2 / 3, 2 / 3))
    kls = [kl for window in windows for kl in window.kl.tolist()]
    assert found.mean_kl == pytest.approx(sum(kls) / 6)
    assert max(kls) * 0.9 < found.percentile_99_kl <= max(kls)
    worst, next_worst = found.disagreements  # the four positions that agree are not listed
    assert (worst.window, worst.position, worst.context, worst.token) == (1, 2, "ef", "g")
    assert (worst.first, worst.second) == ("x", "y")
    assert worst.second_probability > 0.9 > worst.first_probability
    assert (next_worst.window, next_worst.position, next_worst.context, next_worst.token) == (0, 3, "abc", "d")
    assert worst.kl > next_worst.kl > 0
    assert summarize(windows, ids, tokenizer, 1).disagreements == (worst,)
    assert summarize(windows, ids, tokenizer, 0).disagreements == ()
