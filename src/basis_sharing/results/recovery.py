"""The report of a recovery."""

from basis_sharing.recipe.recovery import RecoverySettings
from basis_sharing.results.base import Frozen
from basis_sharing.results.measures import Perplexity


class RecoveryReport(Frozen):
    """The settings and the outcome of a recovery.

    Attributes:
        settings: The settings of the recovery.
        fingerprint: Fingerprint of the token windows.
        windows: Number of training windows.
        held_out: Number of held-out windows.
        steps: Steps of the optimizer, one window each.
        tokens: Number of training tokens, repeated ones counted again.
        trained_parameters: Number of trained parameters.
        loss_before: Held-out loss before the training, in nats per token: KL divergence from the original for
            ``distillation``, else negative log-likelihood.
        loss_after: Held-out loss of the state that is kept.
        slowed: How often the rate was cut to a third because the held-out loss had risen.
        diverged: Whether the training diverged and was stopped; the best earlier state is kept.
        perplexity_before: Perplexity of the compressed model on the evaluation texts.
        perplexity_after: Perplexity of the recovered model on the same windows.
    """

    settings: RecoverySettings
    fingerprint: str
    windows: int
    held_out: int
    steps: int
    tokens: int
    trained_parameters: int
    loss_before: float
    loss_after: float
    slowed: int = 0
    diverged: bool
    perplexity_before: tuple[Perplexity, ...]
    perplexity_after: tuple[Perplexity, ...]
