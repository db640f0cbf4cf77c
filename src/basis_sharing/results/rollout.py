"""What a staged rollout did, step by step; also the memory from which an interrupted one goes on."""

from typing import Any, Literal

from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.comparison import Limits, Verdict


class RolloutSettings(Frozen):
    """What was asked for: an interrupted rollout only goes on with the same.

    Attributes:
        model: The original as it was given.
        model_fingerprint: Fingerprint of its weights and configuration.
        compression: Settings of the compression, without a target.
        ratios: Fractions of parameters to remove, one step each.
        text: Text that original and compressed model are compared on.
        evaluation_windows: Number of its windows; None: all.
        limits: When to stop.
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
    """One step that was compressed, compared and, if asked for, benchmarked.

    Attributes:
        name: Name of its folder.
        roles: Roles that were compressed.
        ratio: Fraction of the parameters removed from them.
        parameters: Parameters of the whole model.
        parameters_before: Those of the original.
        bytes_on_disk: Bytes of its weight files.
        perplexity_quotient: Its perplexity divided by the original's.
        mean_kl: Mean KL divergence from the original, nats per token.
        top1: Fraction of the tokens for which both find the same token most probable.
        prefill_speed: Speed of the prefill, a multiple of the original's; None without a benchmark.
        decode_speed: Speed of decoding one sequence, a multiple of the original's; None without a benchmark.
        verdict: Whether the limits are held.
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
    """A staged rollout so far.

    Attributes:
        settings: What was asked for.
        steps: The steps that are done, in order; only the last one can have broken a limit.
        finished: Whether there is no further step.
        versions: Versions of the software that began it.
    """

    kind: Literal["rollout"] = "rollout"
    settings: RolloutSettings
    steps: tuple[Step, ...] = ()
    finished: bool = False
    versions: dict[str, str]

    @property
    def best(self) -> Step | None:
        """The last step that holds the limits; None where the first one breaks them."""
        return next((step for step in reversed(self.steps) if step.held), None)

    def state(self, step: Step) -> str:
        """Return what became of a step: kept, held (its limits, but a later one is kept) or broken."""
        if not step.held:
            return "broken"
        return "kept" if step is self.best else "held"

    @property
    def sentence(self) -> str:
        """The answer."""
        best = self.best
        if best is None:
            return f"Nothing is kept: already the first step, {_removal(self.steps[0])}, breaks a limit."
        broken = next((step for step in self.steps if not step.held), None)
        end = "it is the last step" if broken is None else f"the next step, {_removal(broken)}, breaks a limit"
        return f"Kept: {_removal(best)}, perplexity {best.perplexity_quotient:.3f} x the original's; {end}."


def _removal(step: Step) -> str:
    return f"{step.ratio:.0%} of {', '.join(step.roles)} removed"
