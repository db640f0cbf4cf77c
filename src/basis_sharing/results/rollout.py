"""The result of a staged rollout, step by step, from which an interrupted one resumes."""

from typing import Any, Literal

from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.comparison import Limits, Verdict


class RolloutSettings(Frozen):
    """The settings of a rollout; an interrupted rollout resumes only with the same settings.

    Attributes:
        model: The original as it was given.
        model_fingerprint: Fingerprint of its weights and configuration.
        compression: Settings of the compression, without a target.
        ratios: Fractions of parameters to remove, one step each.
        text: Text on which the original and the compressed models are compared.
        evaluation_windows: Number of its windows; None: all.
        limits: Limits on the comparison; the rollout stops at the first step that breaks one.
        benchmark: Whether every step is benchmarked.
    """

    model: str
    model_fingerprint: str
    compression: dict[str, Any]
    ratios: tuple[float, ...]
    text: str
    evaluation_windows: int | None
    limits: Limits
    benchmark: bool


class Step(Frozen):
    """One step: a compressed model, its comparison with the original and, optionally, its benchmark.

    Attributes:
        name: Name of its folder.
        roles: Roles that were compressed.
        ratio: Fraction of the parameters removed from them.
        parameters: Parameters of the whole model.
        parameters_before: Parameters of the original.
        bytes_on_disk: Bytes of its weight files.
        perplexity_quotient: Its perplexity divided by the original's.
        mean_kl: Mean KL divergence from the original, in nats per token.
        top1: Fraction of the positions at which both models have the same most probable token.
        prefill_speed: Speed of the prefill as a multiple of the original's; None without a benchmark.
        decode_speed: Speed of decoding one sequence as a multiple of the original's; None without a benchmark.
        verdict: The outcome of the comparison against the limits.
    """

    name: str
    roles: tuple[str, ...]
    ratio: float
    parameters: int
    parameters_before: int
    bytes_on_disk: int
    perplexity_quotient: float
    mean_kl: float
    top1: float
    prefill_speed: float | None
    decode_speed: float | None
    verdict: Verdict

    @property
    def held(self) -> bool:
        """Whether every limit is held."""
        return bool(self.verdict.held)


class Rollout(Result):
    """The state of a staged rollout.

    Attributes:
        settings: The settings of the rollout.
        steps: The steps that are done, in order; only the last one can have broken a limit.
        finished: Whether there is no further step.
        versions: Versions of the software that started it.
    """

    kind: Literal["rollout"] = "rollout"
    settings: RolloutSettings
    steps: tuple[Step, ...] = ()
    finished: bool = False
    versions: dict[str, str]

    @property
    def best(self) -> Step | None:
        """The last step that holds the limits; None if no step does."""
        return next((step for step in reversed(self.steps) if step.held), None)

    def state(self, step: Step) -> str:
        """Return the state of a step: ``"kept"``, ``"held"`` (a later step is kept) or ``"broken"`` (a limit is)."""
        if not step.held:
            return "broken"
        return "kept" if step is self.best else "held"

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        best = self.best
        if best is None:
            return f"Nothing is kept: already the first step, {_removal(self.steps[0])}, breaks a limit."
        broken = next((step for step in self.steps if not step.held), None)
        end = "it is the last step" if broken is None else f"the next step, {_removal(broken)}, breaks a limit"
        return f"Kept: {_removal(best)}, perplexity {best.perplexity_quotient:.3f} x the original's; {end}."


def _removal(step: Step) -> str:
    return f"{step.ratio:.0%} of {', '.join(step.roles)} removed"
