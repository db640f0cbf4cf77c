"""The Fisher information of every input feature (method ``fwsvd``, Hsu et al. 2022)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from basis_sharing.calibration.collect import collected_fisher
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.linalg.whitening import Whitening, diagonal_whitening
from basis_sharing.models.family import Projection
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.weightings.base import Weighting, register


@register
@dataclass
class Fisher(Weighting):
    """S = diag(F)^(1/2), H = I, with F the squared gradients of the weights, summed over each row.

    Attributes:
        fisher: F of every projection, shape ``[d_in]``, fp64.
    """

    name: ClassVar[str] = "fisher"

    fisher: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def collected(cls, run: Run, text: CalibrationText | None) -> Iterator[Self]:
        """Measure the Fisher information, one window at a time, and yield the weighting."""
        assert text is not None
        yield cls(fisher=collected_fisher(run, text), device=run.machine.algebra)

    @classmethod
    def needs(cls, shapes: Shapes) -> Iterable[Needs]:
        """Yield what a forward and a backward pass of the whole model need, with activations recomputed."""
        yield Needs("calibration", shapes.seconds(5 * shapes.forward), shapes.block_memory(gradients=True))

    @classmethod
    def from_known(cls, known: Weighting, projections: Sequence[Projection]) -> Self:
        """Return the weighting from second moments, assuming that inputs and gradients are independent."""
        assert known.moments is not None
        fisher = {}
        for p in projections:
            gram = known.moments.get(p.block, p.input).gram
            gradient = known.moments.get(p.block, p.name).gradient if known.gradients else None
            assert gram is not None
            fisher[p.name] = gram.diagonal().double() * (1.0 if gradient is None else gradient.trace().double())
        return cls(fisher=fisher, device=known.device)

    def whitening(self, inputs: Sequence[Projection]) -> Whitening:
        """Return S from the summed Fisher information of some projections."""
        fisher = torch.stack([self.fisher[p.name] for p in inputs]).sum(0)
        return diagonal_whitening(fisher.sqrt().to(self.device))
