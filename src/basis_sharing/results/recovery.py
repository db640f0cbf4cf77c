"""What a recovery did."""

from basis_sharing.recipe.recovery import RecoverySettings
from basis_sharing.results.base import Frozen
from basis_sharing.results.measures import Perplexity


class RecoveryReport(Frozen):
    """What a recovery did.

    Attributes:
        settings: What was asked for.
        fingerprint: Fingerprint of the token windows.
        windows: Number of windows to learn from.
        held_out: Number of held-out windows.
        steps: Steps of the optimizer, one window each.
        tokens: Tokens that were learned from, repeated ones counted again.
        trained_parameters: Numbers that could change.
        loss_before: Loss on the held-out windows before, nats per token: KL divergence from the original for
            ``distillation``, else negative log-likelihood.
        loss_after: That of what was kept.
        slowed: How often the rate was cut to a third, because the loss on the held-out windows had grown.
        diverged: Whether the training diverged, was stopped, and the best state before was kept.
        perplexity_before: Perplexity of the compressed model on the requested texts.
        perplexity_after: That of the recovered model on the same windows.
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
