"""The result of a comparison of two models."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.amounts import fraction
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.tasks import PairedDifference


class Interval(Frozen):
    """A 95 % confidence interval of a mean over windows.

    It is based on Student's t with one degree of freedom less than there are windows. It assumes that windows are
    independent samples of the text, which holds only approximately for neighbouring windows of one document.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


class Difference(Frozen):
    """How much worse the second of two measurements on the same windows is, window by window.

    Attributes:
        nats_per_token: Mean loss of the second minus that of the first.
        nats_interval: Its paired confidence interval; None for a single window.
        quotient: Perplexity of the second divided by that of the first.
        quotient_interval: Its paired confidence interval; None for a single window.
    """

    nats_per_token: float
    nats_interval: Interval | None
    quotient: float
    quotient_interval: Interval | None


class Disagreement(Frozen):
    """A position where the two models predict the next token very differently.

    Attributes:
        window: Index of the window, from 0.
        position: Index of the predicted token in the window, from 0.
        context: The text before it.
        token: The token of the text.
        first: The first model's most probable token.
        first_probability: Its probability.
        second: The second model's most probable token.
        second_probability: Its probability.
        kl: KL divergence (first || second) of the predictions, in nats.
    """

    window: int
    position: int
    context: str
    token: str
    first: str
    first_probability: float
    second: str
    second_probability: float
    kl: float


class Agreement(Frozen):
    """The agreement of the next-token distributions of two models on the same text.

    Attributes:
        mean_kl: Mean KL divergence (first || second) per token, in nats.
        kl_interval: Confidence interval of ``mean_kl``; None for a single window.
        percentile_99_kl: KL divergence that 1 % of the tokens exceed.
        top1: Fraction of the positions at which both models have the same most probable token.
        top1_interval: Confidence interval of ``top1``; None for a single window.
        window_kl: Mean KL divergence of each window.
        window_top1: The fraction ``top1`` of each window.
        tokens: Number of predicted tokens.
        disagreements: The positions with the largest divergence, in descending order.
    """

    mean_kl: float
    kl_interval: Interval | None
    percentile_99_kl: float
    top1: float
    top1_interval: Interval | None
    window_kl: tuple[float, ...]
    window_top1: tuple[float, ...]
    tokens: int
    disagreements: tuple[Disagreement, ...]


class Continuation(Frozen):
    """The continuation of a prompt by one model.

    Attributes:
        text: The new text, without special tokens.
        tokens: Number of new tokens without special ones; 0 if the model generates only end-of-text.
        ended: Whether the model ended the text itself.
    """

    text: str
    tokens: int
    ended: bool


class Generation(Frozen):
    """Continuations of one prompt, side by side.

    Attributes:
        prompt: The prompt.
        first: The continuation by the first model.
        second: The continuation by the second model.
    """

    prompt: str
    first: Continuation
    second: Continuation


class TaskDifference(Frozen):
    """Two models on one zero-shot task.

    Attributes:
        task: Name of the task.
        first: Accuracy of the first model.
        second: Accuracy of the second model.
        paired: The difference example by example; None if the task gives fractional points, or the prompts differ in
            the models' tokenizers.
    """

    task: str
    first: float
    second: float
    paired: PairedDifference | None


class Limits(Frozen):
    """Limits on the differences of two models; fractions may be written as percentages, e.g. ``"5%"``.

    Attributes:
        max_kl: Largest mean KL divergence (first || second), in nats per token.
        max_perplexity_increase: Largest relative increase of the second model's perplexity over the first's.
        min_agreement: Smallest fraction of positions at which both models have the same most probable token.
        max_drift: Largest relative increase of the second model's perplexity over that stored in a baseline.

    Example:
        >>> limits = basis_sharing.Limits(max_perplexity_increase=0.05, min_agreement=0.9)
        >>> limits.given
    """

    max_kl: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_perplexity_increase: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_drift: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @field_validator("max_perplexity_increase", "min_agreement", "max_drift", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        return fraction(value)

    @classmethod
    def create(cls, **limits: Any) -> Self:
        """Return validated limits.

        Raises:
            RecipeError: A limit is invalid; the message is one sentence about the first one.
        """
        try:
            return cls(**limits)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            flag = f"--{name.replace('_', '-')} {limits[name]}"
            if first["type"] == "value_error":
                raise RecipeError(f"{flag}: {first['msg'].removeprefix('Value error, ')}") from None
            raise RecipeError(f"{flag} is out of range: {first['msg'][0].lower() + first['msg'][1:]}.") from None

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in self if value is not None}


class Check(Frozen):
    """A limit and the measured value.

    Attributes:
        limit: Name of the limit, a field of :class:`Limits`.
        bound: Value of the limit.
        value: The measured value.
        interval: Confidence interval of the measured value; None for a single window.
        held: Whether the measured value holds the limit.
        uncertain: Whether the confidence interval contains the limit.
    """

    limit: str
    bound: float
    value: float
    interval: Interval | None
    held: bool
    uncertain: bool


class Verdict(Frozen):
    """The outcome of a comparison against the limits.

    Attributes:
        held: Whether every limit is held; None if none was set.
        sentence: The outcome in one sentence.
        checks: The checks of all limits that were set.
    """

    held: bool | None
    sentence: str
    checks: tuple[Check, ...]


class Measured(Frozen):
    """One of the two models.

    Attributes:
        model: The model as it was given.
        perplexity: Its perplexity on the text.
    """

    model: str
    perplexity: Perplexity


class Drift(Frozen):
    """The changes since a stored comparison.

    Attributes:
        baseline: The file with the stored comparison.
        stored: The stored measurement of the second model.
        difference: The new measurement of the second model against the stored one, on the same windows.
        changed_generations: Number of prompts whose continuation by the second model has changed.
        versions: Versions of the software in the stored comparison.
    """

    baseline: str
    stored: Measured
    difference: Difference
    changed_generations: int
    versions: dict[str, str]


class Comparison(Result):
    """Two models on one text and the same prompts, with everything needed to measure the second one again.

    Attributes:
        first: The first model, usually the original.
        second: The second model, usually the compressed one.
        difference: How much worse the second predicts the text; None if the models read different tokens.
        agreement: The agreement of their predictions; None if they read or predict different tokens, or if only one
            model was measured against a baseline.
        generations: Continuations of the prompts by both models, greedily and without a chat template.
        tasks: Accuracy of both models on zero-shot tasks; empty if none were scored.
        new_tokens: Largest number of tokens generated after each prompt.
        dtype: Dtype of the setting; "auto": the checkpoint's own.
        limits: The limits that were set.
        verdict: The outcome against the limits.
        drift: The changes since the baseline; None without one.
        first_is_stored: Whether the results of the first model are those of the baseline, so that it was not run.
        notes: Notes for the reader, one sentence each.
        versions: Versions of the software.
    """

    kind: Literal["comparison"] = "comparison"
    first: Measured
    second: Measured
    difference: Difference | None
    agreement: Agreement | None
    generations: tuple[Generation, ...]
    tasks: tuple[TaskDifference, ...] = ()
    new_tokens: int
    dtype: str
    limits: Limits
    verdict: Verdict
    drift: Drift | None
    first_is_stored: bool
    notes: tuple[str, ...]
    versions: dict[str, str]

    @field_validator("first", "second")
    @classmethod
    def _one_loss_per_window(cls, value: Measured) -> Measured:
        if len(value.perplexity.window_nats) != value.perplexity.windows:
            raise ValueError("one loss per window is needed")
        return value
