"""What a comparison of two models found."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.amounts import fraction
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.tasks import PairedDifference


class Interval(Frozen):
    """A 95 % confidence interval of a mean over windows.

    Student's t with one degree of freedom less than there are windows. Windows are taken as independent samples of the
    text, which neighbouring windows of one document are only nearly: on another text the mean may lie elsewhere.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


class Difference(Frozen):
    """How much worse the second of two measurements on the same windows is, window by window.

    Attributes:
        nats_per_token: Mean loss of the second less that of the first.
        nats_interval: Paired confidence interval of it; None for a single window.
        quotient: Perplexity of the second by that of the first.
        quotient_interval: Paired confidence interval of it; None for a single window.
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
        context: The text just before it.
        token: The token of the text.
        first: The token that the first model finds most probable.
        first_probability: The probability it gives to that.
        second: The token that the second model finds most probable.
        second_probability: The probability it gives to that.
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
    """How far the next-token distributions of two models are apart on the same text.

    Attributes:
        mean_kl: Mean KL divergence (first || second) per token, in nats.
        kl_interval: Confidence interval of it; None for a single window.
        percentile_99_kl: KL divergence that 1 % of the tokens exceed.
        top1: Fraction of the tokens for which both models find the same token most probable.
        top1_interval: Confidence interval of it; None for a single window.
        window_kl: Mean KL divergence of each window.
        window_top1: That fraction of each window.
        tokens: Number of predicted tokens.
        disagreements: Where the divergence is largest, the largest first.
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
    """What one model writes after a prompt.

    Attributes:
        text: The new text, without special tokens.
        tokens: Number of new tokens, special ones not counted; 0 where the model writes nothing but end-of-text.
        ended: Whether the model ended the text itself.
    """

    text: str
    tokens: int
    ended: bool


class Generation(Frozen):
    """Continuations of one prompt, side by side.

    Attributes:
        prompt: The prompt.
        first: What the first model writes.
        second: What the second model writes.
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
        paired: The difference example by example; None where the task gives parts of a point, or the models'
            tokenizers make different prompts.
    """

    task: str
    first: float
    second: float
    paired: PairedDifference | None


class Limits(Frozen):
    """How far apart the models may be. Fractions may be written as percentages, e.g. ``"5%"``.

    Attributes:
        max_kl: Most nats per token that the mean KL divergence (first || second) may reach.
        max_perplexity_increase: By what fraction the second model's perplexity may be above the first's.
        min_agreement: Least fraction of tokens for which both models find the same token most probable.
        max_drift: By what fraction the second model's perplexity may be above the one stored in a baseline.

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
        """Validate limits.

        Raises:
            RecipeError: One sentence about the first limit that is wrong.
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
        """The limits that are set."""
        return {name: value for name, value in self if value is not None}


class Check(Frozen):
    """One limit against the measured value.

    Attributes:
        limit: Name of the limit, a field of :class:`Limits`.
        bound: Its value.
        value: What was measured.
        interval: Confidence interval of that; None for a single window.
        held: Whether the measured value holds the limit.
        uncertain: Whether the confidence interval lies on both sides of the limit.
    """

    limit: str
    bound: float
    value: float
    interval: Interval | None
    held: bool
    uncertain: bool


class Verdict(Frozen):
    """The answer in one sentence.

    Attributes:
        held: Whether every limit is held; None where none was set.
        sentence: The answer.
        checks: Every limit that was set.
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
    """What changed since a stored comparison.

    Attributes:
        baseline: The file with the stored comparison.
        stored: The second model as it was measured then.
        difference: The second model now against then, on the same windows.
        changed_generations: Number of prompts that the second model continues with another text than then.
        versions: Versions of the software then.
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
        difference: How much worse the second predicts the text; None where the models read different tokens.
        agreement: How far their predictions are apart; None where they read or predict different tokens, and in a
            check against a baseline that was given one model only.
        generations: What both write after the prompts, greedily and without a chat template.
        tasks: Accuracy of both on zero-shot tasks, where asked for.
        new_tokens: Most tokens written after each prompt.
        dtype: Dtype that the models were asked to be loaded in; "auto": the checkpoint's own.
        limits: The limits that were set.
        verdict: The answer.
        drift: What changed since the baseline; None without one.
        first_is_stored: Whether the numbers and words of the first model are those of the baseline: it was not run.
        notes: What a reader has to know, one sentence each.
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
