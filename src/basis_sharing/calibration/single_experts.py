"""What single experts get and compute: tokens, squares of neurons, and of the gradients before the neurons.

They are few numbers per expert, also where second moments of every expert would not fit on a disk.
"""

from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import Moments
from basis_sharing.models.family import Experts
from basis_sharing.run.processes import Processes
from basis_sharing.runtime.experts_basis_sharing import chosen_in, expert_matrix, neurons_of, routing_in, visited


class SingleExperts:
    """Accumulates the visits and squares of the experts of one block over many calls.

    Args:
        experts: The experts.
        module: Their module.
        device: Where the activations are.

    Attributes:
        visits: Number of tokens that each of them was given, shape ``[experts]``.
    """

    def __init__(self, experts: Experts, module: Any, device: torch.device) -> None:
        self._experts, self._module = experts, module
        self.visits = torch.zeros(experts.count, dtype=torch.int64, device=device)
        self._sums = {
            name: torch.zeros(experts.count, width, dtype=torch.float64, device=device)
            for name, width in zip(experts.sizes, _widths(experts), strict=True)
        }

    def seen(self, x: Tensor, given: tuple[Any, ...], written: Tensor) -> None:
        """Count the tokens of every expert; its squares are added with the gradient of what is written."""
        chosen, routing = chosen_in(given), routing_in(given)
        if chosen is not None:
            self.visits += torch.bincount(chosen.flatten(), minlength=len(self.visits))[: len(self.visits)]
        if routing is not None and self._sums:
            written.register_hook(lambda g: self._add(x.detach(), *routing, g))

    @torch.no_grad()
    def _add(self, x: Tensor, index: Tensor, weights: Tensor, g: Tensor) -> None:
        reading, _ = self._experts.sizes
        bias = getattr(self._module, f"{reading}_bias", None)
        for number, token, place in visited(index, self._experts.count):
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
        """Add up visits and squares over all processes, and return the squares by name of the weight of all experts."""
        processes.add_up(self.visits)
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
