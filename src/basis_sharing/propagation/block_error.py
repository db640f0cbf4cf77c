"""How far a block of the compressed model is from what the original makes at the same depth."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockError:
    """The error of states that a block hands on, in proportion to their size.

    For states y and those of the original t it is the mean over the tokens of ||(y - t) R||^2 / (||t||^2 m), with
    R R^T the second moment of the loss gradient at the block's output and m its mean diagonal: what the loss does not
    care about does not count, and no token counts for more because its activations are huge. Without gradients R is
    the identity.

    Attributes:
        root: R / sqrt(m), shape ``[hidden, hidden]``, fp32; None: the identity.
    """

    root: Tensor | None = None

    @classmethod
    def weighted_by(cls, H: Tensor | None, device: torch.device) -> "BlockError":
        """Return the error under a second moment of gradients, shape ``[hidden, hidden]``, positive definite."""
        if H is None:
            return cls()
        scaled = H.double() / H.diagonal().double().mean()
        return cls(torch.linalg.cholesky(scaled).to(device, torch.float32))

    def __call__(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the error of states, ``[..., tokens, hidden]``, as a scalar."""
        targets = targets.float()
        error = states.float() - targets
        if self.root is not None:
            error = error @ self.root
        return (error.square().sum(-1) / targets.square().sum(-1).clamp_min(1e-12)).mean()
