"""What a weighting is: from calibration statistics to the loss that the options of a group minimise.

The error dW of a projection counts as tr(dW^T G dW H), with G from what it reads and H from what reads it. Planning
measures candidates with it, and treatments solve for it: both see one and the same problem. The published methods sum
their statistics over a group (Basis Sharing, section 3.2); the planner's weightings keep those of every layer apart and
count in nats per token.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from basis_sharing.calibration.collect import collected_moments
from basis_sharing.calibration.moments import Moments, MomentStore, Statistics
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.linalg.truncation import Member
from basis_sharing.linalg.whitening import CholeskyWhitening, Whitening
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Projection
from basis_sharing.run.registry import Registry
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes

WEIGHTINGS: Registry[type["Weighting"]] = Registry("weighting", "basis_sharing.weightings")


def register(cls: type["Weighting"]) -> type["Weighting"]:
    """Register a weighting under its name; use it as a decorator."""
    return WEIGHTINGS.register(cls.name, cls)


@dataclass
class Weighting:
    """The problem of a group of projections, under one weighting. Subclasses are the published ones and the planner's.

    Attributes:
        name: Its name in presets.
        statistics: What is collected of every input.
        gradients: Whether the loss gradients at the outputs are collected as well.
        in_nats: Whether it keeps the statistics of every layer apart and counts in nats per token.
        whitens: Whether errors are weighted on the input side at all.
        moments: What was collected.
        device: Where the matrices of a problem are made; it must have fp64.
        remembered_bytes: What the whitenings of the last inputs may take, which are used again and again.
    """

    name: ClassVar[str]
    statistics: ClassVar[Statistics] = Statistics(gram=True)
    gradients: ClassVar[bool] = False
    in_nats: ClassVar[bool] = False
    whitens: ClassVar[bool] = True

    moments: MomentStore | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    remembered_bytes: int = 256 * 2**20
    _remembered: dict[object, Whitening] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    @contextmanager
    def collected(cls, run: Run, text: CalibrationText | None) -> Iterator[Self]:
        """Collect what the weighting needs of a run's model, and yield the weighting."""
        assert text is not None
        machine = run.machine
        with collected_moments(run, text, cls.statistics, gradients=cls.gradients) as moments:
            yield cls(moments=moments, device=machine.algebra, remembered_bytes=machine.whitening_bytes)

    @classmethod
    def needs(cls, shapes: Shapes) -> Iterable[Needs]:
        """Say what collecting its statistics needs."""
        states, grams = shapes.states_bytes, sum(4 * width**2 for width in shapes.inputs.values())
        kept = 3 * states + grams
        work = shapes.forward + shapes.input_moments
        name = "calibration"
        if cls.gradients:
            kept += (len(shapes.decoder.blocks) + 2) * states + sum(4 * p.d_out**2 for p in shapes.decoder.projections)
            work = 3 * shapes.forward + 3 * shapes.head + shapes.input_moments + shapes.output_moments
            name = "calibration, with gradients"
        yield Needs(name, shapes.seconds(work), shapes.block_memory(gradients=cls.gradients), kept)

    @classmethod
    def from_known(cls, known: "Weighting", projections: Sequence[Projection]) -> Self:
        """Return the weighting of a published method, from the statistics of another one."""
        return cls(moments=known.moments, device=known.device)

    def problem(self, model: Any, members: Sequence[Projection]) -> list[Member]:
        """Return the matrices of a group with their weightings, in fp64.

        They are computed on access, which raises :class:`~basis_sharing.errors.NumericalError` where the statistics
        contain NaN or infinity.
        """
        return [WeightedProjection(self, model, p, (p,) if self.in_nats else tuple(members)) for p in members]

    def whitening(self, inputs: Sequence[Projection]) -> Whitening:
        """Return S with S^T S = G, from the statistics of what some projections read.

        Projections that read one input get the same object while it is remembered.
        """
        key = tuple((p.block, p.input) for p in inputs)
        if key not in self._remembered:
            assert self.moments is not None
            self._remember(key, self._from_moments(self.moments.total(key)))
        return self._remembered[key]

    def output_weighting(self, projection: Projection) -> Tensor | None:
        """Return H, shape ``[d_out, d_out]``, fp64; None: the identity."""
        return None

    def output_scale(self, projection: Projection) -> float | None:
        """Return the mean of the diagonal of H without computing H; None where H is the identity."""
        return None

    def _from_moments(self, moments: Moments) -> Whitening:
        """Return S from the summed statistics of some inputs."""
        raise NotImplementedError

    def _remember(self, key: object, S: Whitening) -> None:
        """Keep the last ones: groups that read one input, and segments of neighbouring blocks, come together."""
        self._remembered[key] = S
        while len(self._remembered) > 1 and sum(map(_bytes, self._remembered.values())) > self.remembered_bytes:
            del self._remembered[next(iter(self._remembered))]


@dataclass(frozen=True)
class WeightedProjection:
    """A projection in a group, a :class:`~basis_sharing.linalg.truncation.Member`.

    It computes W, S and H on access and keeps none of them.
    """

    weighting: Weighting
    model: Any
    projection: Projection
    inputs: tuple[Projection, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.projection.d_in, self.projection.d_out

    @property
    def W(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """The weight, shape ``[d_in, d_out]``, fp64."""
        return weight(self.model, self.projection).detach().to(self.weighting.device, torch.float64)

    @property
    def S(self) -> Whitening:  # noqa: N802 - the mathematics' name
        """Weighting of the input side."""
        return self.weighting.whitening(self.inputs)

    @property
    def H(self) -> Tensor | None:  # noqa: N802 - the mathematics' name
        """Weighting of the output side, ``[d_out, d_out]``, fp64; None: the identity."""
        return self.weighting.output_weighting(self.projection)

    @property
    def input_key(self) -> object:
        """The inputs whose statistics weigh it."""
        return tuple((p.block, p.input) for p in self.inputs)

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H; None without H."""
        return self.weighting.output_scale(self.projection)


def _bytes(S: Whitening) -> int:
    """Return what a whitening may come to hold: its factor and its second moment."""
    return 2 * S.factor.nbytes if isinstance(S, CholeskyWhitening) else 0


def shrink_(M: Tensor, share: float) -> Tensor:
    """Move M towards its mean diagonal, (1 - share) M + share mean(diag M) I, in place, and return it."""
    mean = M.diagonal().mean()
    M.mul_(1 - share).diagonal().add_(share * mean)
    return M


def ridge_of(whitening: Whitening) -> float:
    """Return the relative ridge a whitening needed, 0 for none."""
    return whitening.ridge if isinstance(whitening, CholeskyWhitening) else 0.0
