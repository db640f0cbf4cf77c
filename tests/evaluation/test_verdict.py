"""The one sentence: which limits hold, how far, and how sure."""

import pytest

from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.verdict import Missing, judge, refuse_unanswerable
from basis_sharing.results.comparison import Agreement, Difference, Drift, Interval, Limits, Measured, Verdict
from basis_sharing.results.measures import Perplexity


def measured(bits: float | None = 1.0) -> Measured:
    perplexity = Perplexity(
        text="text",
        fingerprint="0",
        perplexity=2.0,
        nats_per_token=0.7,
        window_nats=(0.7,),
        bits_per_byte=bits,
        windows=1,
        length=8,
        tokens=7,
        bos=False,
        dtype="float32",
    )
    return Measured(model="m", perplexity=perplexity)


AGREEMENT = Agreement(
    mean_kl=0.04,
    kl_interval=Interval(low=0.03, high=0.06),
    percentile_99_kl=0.3,
    top1=0.925,
    top1_interval=Interval(low=0.92, high=0.93),
    window_kl=(0.04,),
    window_top1=(0.925,),
    tokens=7,
    disagreements=(),
)
DIFFERENCE = Difference(
    nats_per_token=0.03,
    nats_interval=Interval(low=0.005, high=0.055),
    quotient=1.0305,
    quotient_interval=Interval(low=1.0052, high=1.0564),
)


def verdict(**limits: object) -> Verdict:
    return judge(Limits.create(**limits), measured(), measured(), DIFFERENCE, AGREEMENT, None)


def test_every_limit_is_named_with_its_value() -> None:
    found = verdict(max_kl=0.1, max_perplexity_increase="10%", min_agreement="90%")
    assert found.held is True
    assert found.sentence == (
        "PASS: mean KL divergence 0.0400 is within the limit of 0.1 (95 % interval 0.0300 to 0.0600); perplexity "
        "increase 3.05 % is within the limit of 10 % (95 % interval 0.52 % to 5.64 %); agreement 92.50 % reaches the "
        "limit of 90 % (95 % interval 92.00 % to 93.00 %)."
    )


def test_one_broken_limit_is_enough() -> None:
    found = verdict(max_kl=0.1, min_agreement=0.95)
    assert found.held is False
    assert [check.held for check in found.checks] == [True, False]
    assert found.sentence.startswith("FAIL: mean KL divergence 0.0400 is within the limit of 0.1")
    assert "agreement 92.50 % is below the limit of 95 %" in found.sentence
    assert "is above the limit of 0.01" in verdict(max_kl=0.01).sentence


def test_an_interval_on_both_sides_is_said() -> None:
    found = verdict(max_kl=0.05)
    assert found.held is True
    assert found.checks[0].uncertain
    assert "(95 % interval 0.0300 to 0.0600, which straddles the limit: measure more windows" in found.sentence


def test_a_value_on_the_limit_holds() -> None:
    assert verdict(max_kl=0.04, min_agreement=0.925).held is True


def test_without_limits_it_describes() -> None:
    found = verdict()
    assert found.held is None
    assert found.checks == ()
    assert found.sentence.startswith("No limit was set: the perplexity of B is 1.0305 x that of A (95 % interval 1.005")
    assert "both find the same token most probable at 92.50 % of the positions" in found.sentence
    other = judge(Limits(), measured(), measured(bits=1.5), None, None, None)
    assert other.sentence == "No limit was set: B needs 1.5000 bits per byte of the text, A 1.0000."
    nothing = judge(Limits(), measured(None), measured(None), None, None, None)
    assert nothing.sentence == "No limit was set: only the generations can be compared."


def test_drift_has_a_limit_of_its_own_and_is_always_said() -> None:
    drift = Drift(baseline="r.json", stored=measured(), difference=DIFFERENCE, changed_generations=0, versions={})
    found = judge(Limits(max_drift=0.01), measured(), measured(), None, None, drift)
    assert found.held is False
    assert "perplexity drift since the baseline 3.05 % is above the limit of 1 %" in found.sentence
    found = judge(Limits(max_perplexity_increase=0.1), measured(), measured(), DIFFERENCE, None, drift)
    assert found.sentence.endswith("; the perplexity of B is 1.0305 x that in r.json.")


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_kl": -1}, "--max-kl -1 is out of range"),
        ({"max_kl": float("nan")}, "--max-kl nan is out of range"),
        (
            {"max_perplexity_increase": "much"},
            "--max-perplexity-increase much: 'much' is neither a fraction nor a percentage",
        ),
        ({"max_perplexity_increase": "-5%"}, "--max-perplexity-increase -5% is out of range"),
        ({"max_drift": "inf"}, "--max-drift inf is out of range"),
        ({"min_agreement": "101%"}, "--min-agreement 101% is out of range"),
        ({"min_agreement": "nan"}, "--min-agreement nan is out of range"),
        ({"min_agreement": 90}, "--min-agreement 90 is out of range"),
    ],
)
def test_limits_that_mean_nothing(limits: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=r".") as caught:
        Limits.create(**limits)
    assert sentence in str(caught.value)


def test_fractions_and_percentages_are_the_same() -> None:
    assert Limits.create(min_agreement="90 %") == Limits.create(min_agreement="0.9") == Limits(min_agreement=0.9)


def test_limits_without_their_number_are_refused() -> None:
    missing = Missing(agreement="the models are strangers")
    refuse_unanswerable(Limits(max_perplexity_increase=0.1), missing)
    with pytest.raises(RecipeError, match=r"^--min-agreement cannot be judged: the models are strangers\.$"):
        refuse_unanswerable(Limits(min_agreement=0.1), missing)
