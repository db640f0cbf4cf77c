"""The verdict of a comparison: whether the measured differences hold the limits."""

from dataclasses import dataclass

from basis_sharing.errors import RecipeError
from basis_sharing.results.comparison import Agreement, Check, Difference, Drift, Interval, Limits, Measured, Verdict

_NAMES = {
    "max_kl": "mean KL divergence",
    "max_perplexity_increase": "perplexity increase",
    "min_agreement": "agreement",
    "max_drift": "perplexity drift since the baseline",
}
_PERCENT = ("max_perplexity_increase", "min_agreement", "max_drift")


@dataclass(frozen=True)
class Missing:
    """Why measures are missing, each as the end of a sentence; None if a measure is available.

    Attributes:
        difference: Why the perplexities cannot be compared.
        agreement: Why the predictions cannot be compared.
        drift: Why there is no drift.
    """

    difference: str | None = None
    agreement: str | None = None
    drift: str | None = None


def refuse_unanswerable(limits: Limits, missing: Missing) -> None:
    """Make sure that every limit can be judged, before the work that measures it.

    Raises:
        RecipeError: A limit needs a number that this comparison will not have.
    """
    reasons = {
        "max_kl": missing.agreement,
        "max_perplexity_increase": missing.difference,
        "min_agreement": missing.agreement,
        "max_drift": missing.drift,
    }
    for name in limits.given:
        if reasons[name] is not None:
            raise RecipeError(f"--{name.replace('_', '-')} cannot be judged: {reasons[name]}.")


def judge(
    limits: Limits,
    first: Measured,
    second: Measured,
    difference: Difference | None,
    agreement: Agreement | None,
    drift: Drift | None,
) -> Verdict:
    """Return the verdict on the measured values; without limits its sentence only describes them.

    A limit is held if the measured value holds it. If the confidence interval contains the limit, the sentence says so,
    because another part of the text might give another verdict.
    """
    measured = _measured(difference, agreement, drift)
    checks = tuple(_check(name, bound, *measured[name]) for name, bound in limits.given.items())
    if not checks:
        return Verdict(held=None, sentence=_description(first, second, difference, agreement, drift), checks=())
    held = all(check.held for check in checks)
    sentences = [_sentence(check) for check in checks]
    if drift is not None and limits.max_drift is None:
        sentences.append(_drifted(drift))
    return Verdict(held=held, sentence=f"{'PASS' if held else 'FAIL'}: {'; '.join(sentences)}.", checks=checks)


def _shown(name: str, value: float, digits: int | None = None) -> str:
    """Return a limit or a measured value as text; by default with as few digits as possible."""
    if name in _PERCENT:
        return f"{100 * value:g} %" if digits is None else f"{100 * value:,.{digits}f} %"
    return f"{value:g}" if digits is None else f"{value:.{digits + 2}f}"


def _measured(
    difference: Difference | None, agreement: Agreement | None, drift: Drift | None
) -> dict[str, tuple[float, Interval | None]]:
    measured: dict[str, tuple[float, Interval | None]] = {}
    if difference is not None:
        measured["max_perplexity_increase"] = _increase(difference)
    if agreement is not None:
        measured["max_kl"] = agreement.mean_kl, agreement.kl_interval
        measured["min_agreement"] = agreement.top1, agreement.top1_interval
    if drift is not None:
        measured["max_drift"] = _increase(drift.difference)
    return measured


def _increase(difference: Difference) -> tuple[float, Interval | None]:
    interval = difference.quotient_interval
    return (
        difference.quotient - 1,
        None if interval is None else Interval(low=interval.low - 1, high=interval.high - 1),
    )


def _check(name: str, bound: float, value: float, interval: Interval | None) -> Check:
    return Check(
        limit=name,
        bound=bound,
        value=value,
        interval=interval,
        held=value >= bound if name.startswith("min_") else value <= bound,
        uncertain=interval is not None and interval.low < bound < interval.high,
    )


def _sentence(check: Check) -> str:
    name, least = check.limit, check.limit.startswith("min_")
    relations = ("is below", "reaches") if least else ("is above", "is within")
    relation = relations[check.held]
    sentence = f"{_NAMES[name]} {_shown(name, check.value, 2)} {relation} the limit of {_shown(name, check.bound)}"
    if check.interval is None:
        return f"{sentence} (a single window: no confidence interval)"
    sentence += f" (95 % interval {_shown(name, check.interval.low, 2)} to {_shown(name, check.interval.high, 2)}"
    return sentence + (", which straddles the limit: measure more windows to be sure)" if check.uncertain else ")")


def _description(
    first: Measured,
    second: Measured,
    difference: Difference | None,
    agreement: Agreement | None,
    drift: Drift | None,
) -> str:
    parts = []
    if difference is not None:
        interval = difference.quotient_interval
        spread = "" if interval is None else f" (95 % interval {interval.low:,.4f} to {interval.high:,.4f})"
        parts.append(f"the perplexity of B is {difference.quotient:,.4f} x that of A{spread}")
    elif first.perplexity.bits_per_byte is not None and second.perplexity.bits_per_byte is not None:
        one, other = first.perplexity.bits_per_byte, second.perplexity.bits_per_byte
        parts.append(f"B needs {other:.4f} bits per byte of the text, A {one:.4f}")
    if agreement is not None:
        parts.append(f"the mean KL divergence is {agreement.mean_kl:.4f} nats per token")
        parts.append(f"both find the same token most probable at {100 * agreement.top1:.2f} % of the positions")
    if drift is not None:
        parts.append(_drifted(drift))
    if not parts:
        parts.append("only the generations can be compared")
    return f"No limit was set: {'; '.join(parts)}."


def _drifted(drift: Drift) -> str:
    return f"the perplexity of B is {drift.difference.quotient:,.4f} x that in {drift.baseline}"
