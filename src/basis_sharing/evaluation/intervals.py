"""Confidence intervals of means over windows."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from basis_sharing.results.comparison import Difference, Interval

_LEVEL = 0.95
_LARGEST_EXPONENT = 700.0


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % confidence interval of the mean of independent values; None for a single one.

    It uses Student's t, so that it is valid for few values too.
    """
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    reach = float(t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(low=mean - reach, high=mean + reach)


def loss_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the difference of two models' losses on the same windows.

    Args:
        first: Losses of the first model in nats per token, one per window; all windows have the same length.
        second: Losses of the second model on the same windows.
    """
    rises = [after - before for before, after in zip(first, second, strict=True)]
    mean = float(np.mean(rises))
    interval = mean_interval(rises)
    return Difference(
        nats_per_token=mean,
        nats_interval=interval,
        quotient=_exp(mean),
        quotient_interval=None if interval is None else Interval(low=_exp(interval.low), high=_exp(interval.high)),
    )


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))
