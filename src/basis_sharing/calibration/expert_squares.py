"""What single experts compute: sums of squares of their neurons, and of the gradients at what they read is mapped to.

They are few numbers per expert, also where second moments of every expert would not fit on a disk.
"""

from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import Moments
from basis_sharing.models.family import Experts
from basis_sharing.run.processes import Processes
from basis_sharing.runtime.experts_basis_sharing import expert_matrix, neurons_of, routing_in


class ExpertSquares:
    """Accumulates the squares of the experts of one block over many calls.

    Args:
        experts: The experts.
        module: Their module.
        device: Where the activations are.
    """

    def __init__(self, experts: Experts, module: Any, device: torch.device) -> None:
        self._experts, self._module = experts, module
        self._sums = {
            name: torch.zeros(experts.count, width, dtype=torch.float64, device=device)
            for name, width in zip(experts.sizes, _widths(experts), strict=True)
        }

    def seen(self, x: Tensor, given: tuple[Any, ...], written: Tensor) -> None:
        """Note what the experts read and how tokens are routed; they are added with the gradient of what is written."""
        routing = routing_in(given)
        if routing is not None and self._sums:
            written.register_hook(lambda g: self._add(x.detach(), *routing, g))

    @torch.no_grad()
    def _add(self, x: Tensor, index: Tensor, weights: Tensor, g: Tensor) -> None:
        reading, _ = self._experts.sizes
        bias = getattr(self._module, f"{reading}_bias", None)
        for number in index.unique().tolist():
            if number >= self._experts.count:
                continue
            token, place = (index == number).nonzero(as_tuple=True)
            hidden = x[token] @ expert_matrix(self._module, reading, number)
            hidden = (hidden if bias is None else hidden + bias[number]).requires_grad_(True)
            share = weights[token, place, None]
            with torch.enable_grad():
                neurons = neurons_of(self._module, hidden)
                upstream = (share * g[token]) @ expert_matrix(self._module, "down_proj", number).T
                (gradient,) = torch.autograd.grad(neurons, hidden, upstream.to(neurons.dtype))
            self._sums[reading][number] += gradient.double().square().sum(0)
            self._sums["down_proj"][number] += (share * neurons.detach()).double().square().sum(0)

    def finish(self, tokens: int, processes: Processes) -> dict[str, Moments]:
        """Return the sums over all processes by name of the matrix of all experts."""
        found = {}
        for name, sums in self._sums.items():
            processes.add_up(sums)
            found[f"{self._experts.name}.{name}"] = Moments(tokens=tokens, squares=sums.cpu())
        return found


def _widths(experts: Experts) -> list[int]:
    """Return the number of outputs of the weight that reads, and of neurons; none if experts cannot be told apart."""
    if not experts.sizes:
        return []
    (_, outputs), (neurons, _) = experts.sizes.values()
    return [outputs, neurons]
