"""Base class of weightings: from calibration statistics to the loss that the factors of a group minimise.

The loss of an error dW of a projection is tr(dW^T G dW H), with G from the statistics of its input and H from those of
the loss gradient at its output. Planning evaluates candidates with this loss, and treatments minimise it. The published
methods sum their statistics over a group (Basis Sharing, section 3.2); the planner's weightings keep those of every
layer separate and express losses in nats per token.
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
    """A weighting with its collected statistics; subclasses implement the published weightings and the planner's.

    Attributes:
        name: Its name in presets.
        statistics: The statistics to collect for every input.
        gradients: Whether the second moments of the loss gradients at the outputs are collected as well.
        in_nats: Whether the statistics of every layer are kept separate and losses are in nats per token.
        whitens: Whether errors are weighted on the input side.
        moments: The collected statistics.
        device: Device of the matrices of a problem; it must support fp64.
        remembered_bytes: Maximum size of the cache of recent whitenings, in bytes.
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
        """Collect the statistics from a run's model, and yield the weighting."""
        assert text is not None
        machine = run.machine
        with collected_moments(run, text, cls.statistics, gradients=cls.gradients) as moments:
            yield cls(moments=moments, device=machine.algebra, remembered_bytes=machine.whitening_bytes)

    @classmethod
    def needs(cls, shapes: Shapes) -> Iterable[Needs]:
        """Yield the time, memory and disk space that collecting the statistics needs."""
        states, grams = shapes.states_bytes, sum(4 * width**2 for width in shapes.inputs.values())
        kept = 3 * states + grams
        work = shapes.forward + shapes.input_moments
        name = "calibration"
        if cls.gradients:
            kept += (len(shapes.decoder.blocks) + 2) * states + sum(4 * p.d_out**2 for p in shapes.decoder.measured)
            work = 3 * shapes.forward + 3 * shapes.head + shapes.input_moments + shapes.output_moments
            name = "calibration, with gradients"
        yield Needs(name, shapes.seconds(work), shapes.block_memory(gradients=cls.gradients), kept)

    @classmethod
    def from_known(cls, known: "Weighting", projections: Sequence[Projection]) -> Self:
        """Return this weighting, computed from the statistics of another one."""
        return cls(moments=known.moments, device=known.device)

    def problem(self, model: Any, members: Sequence[Projection]) -> list[Member]:
        """Return the members of a group with their weightings, in fp64.

        The matrices are computed on access, which raises :class:`~basis_sharing.errors.NumericalError` if the
        statistics contain NaN or infinity.
        """
        return [WeightedProjection(self, model, p, (p,) if self.in_nats else tuple(members)) for p in members]

    def whitening(self, inputs: Sequence[Projection]) -> Whitening:
        """Return S with S^T S = G, from the summed statistics of the inputs of some projections.

        Projections with the same inputs get the same object as long as it is in the cache.
        """
        key = tuple((p.block, p.input) for p in inputs)
        if key not in self._remembered:
            assert self.moments is not None
            self._remember(key, self._from_moments(self.moments.total(key)))
        return self._remembered[key]

    def second_moment(self, inputs: Sequence[Projection]) -> Tensor:
        """Return S^T S, shape ``[d_in, d_in]``, fp64."""
        S = self.whitening(inputs)
        if isinstance(S, CholeskyWhitening):
            return S.moment
        return S.apply_transposed(S.apply(torch.eye(inputs[0].d_in, dtype=torch.float64, device=self.device)))

    def output_weighting(self, projection: Projection) -> Tensor | None:
        """Return H, shape ``[d_out, d_out]``, fp64; None: the identity."""
        return None

    def output_scale(self, projection: Projection) -> float | None:
        """Return the mean of the diagonal of H without computing H; None if H is the identity."""
        return None

    def _from_moments(self, moments: Moments) -> Whitening:
        """Return S from the summed statistics of some inputs."""
        raise NotImplementedError

    def _remember(self, key: object, S: Whitening) -> None:
        """Add a whitening to the cache, and drop the oldest ones beyond its size.

        A small cache is sufficient: groups with the same input, and neighbouring blocks, are processed together.
        """
        self._remembered[key] = S
        while len(self._remembered) > 1 and sum(map(_bytes, self._remembered.values())) > self.remembered_bytes:
            del self._remembered[next(iter(self._remembered))]


@dataclass(frozen=True)
class WeightedProjection:
    """A projection in a group, as a :class:`~basis_sharing.linalg.truncation.Member`.

    W, S and H are computed on access and not kept.
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
    def G(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """S^T S, shape ``[d_in, d_in]``, fp64."""
        return self.weighting.second_moment(self.inputs)

    @property
    def key(self) -> object:
        """Name of the projection."""
        return self.projection.name

    @property
    def H(self) -> Tensor | None:  # noqa: N802 - the mathematics' name
        """Weighting of the output side, ``[d_out, d_out]``, fp64; None: the identity."""
        return self.weighting.output_weighting(self.projection)

    @property
    def input_key(self) -> object:
        """Block and name of the inputs whose statistics S is computed from."""
        return tuple((p.block, p.input) for p in self.inputs)

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H; None without H."""
        return self.weighting.output_scale(self.projection)


def _bytes(S: Whitening) -> int:
    """Return the most memory a whitening may take, in bytes: that of its factor and of its second moment."""
    return 2 * S.factor.nbytes if isinstance(S, CholeskyWhitening) else 0


def shrink_(M: Tensor, share: float) -> Tensor:
    """Shrink M towards its mean diagonal in place, to (1 - share) M + share mean(diag M) I, and return it."""
    mean = M.diagonal().mean()
    M.mul_(1 - share).diagonal().add_(share * mean)
    return M


def ridge_of(whitening: Whitening) -> float:
    """Return the relative ridge that was added for a whitening, 0 for none."""
    return whitening.ridge if isinstance(whitening, CholeskyWhitening) else 0.0
