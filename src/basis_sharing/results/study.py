"""What a study of sharing found out: for every pair of layers, one shared basis against two private ones."""

from typing import Literal

from basis_sharing.errors import PlanError
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.compression import CalibrationReport

Matrix = tuple[tuple[float | None, ...], ...]


class RoleAtRatio(Frozen):
    """What sharing does to one role at one ratio. A pair pays if its quotient is below 1.

    Attributes:
        ratio: Fraction of the parameters of a pair that is removed.
        pairs: Pairs that can be compared.
        pairs_paying: How many of them pay.
        neighbours: Pairs of adjacent blocks among them.
        neighbours_paying: How many of these pay.
        best_pair: Blocks of the pair with the lowest quotient; None where no pair can be compared.
        best_gain: 1 - that quotient, the fraction of the private loss that sharing avoids; negative: it adds to it.
        best_neighbour: Lowest quotient of adjacent blocks; None where there are none.
        median_neighbour: Median quotient of adjacent blocks; None where there are none.
    """

    ratio: float
    pairs: int
    pairs_paying: int
    neighbours: int
    neighbours_paying: int
    best_pair: tuple[int, int] | None
    best_gain: float | None
    best_neighbour: float | None
    median_neighbour: float | None


class RoleStudy(Frozen):
    """The study of projections with one place in their blocks and one shape.

    Attributes:
        name: The role, with place or shape added where several are studied.
        role: What the projections are for.
        slot: Module path inside a block.
        d_in: Number of input features.
        d_out: Number of output features.
        layers: Blocks that have the projection, ascending; rows and columns of the matrices stand for them.
        quotients: Per ratio, the loss of one shared basis divided by that of two private ones, ``[layers][layers]``,
            symmetric; None on the diagonal, for pairs that are too far apart, and where the ratio leaves fewer
            parameters than rank 1 needs.
        shared_losses: Per ratio, the expected loss rise of the shared basis, in nats per token, arranged alike.
        summaries: One per ratio.
        lowest_paying_ratio: The lowest studied ratio at which any pair pays; None: none pays at any.
    """

    name: str
    role: str
    slot: str
    d_in: int
    d_out: int
    layers: tuple[int, ...]
    quotients: tuple[Matrix, ...]
    shared_losses: tuple[Matrix, ...]
    summaries: tuple[RoleAtRatio, ...]
    lowest_paying_ratio: float | None


class SharingStudy(Frozen):
    """The study of a model.

    Attributes:
        ratios: Fractions of the parameters of a pair that are removed, ascending.
        roles: One study per role (and shape), in the order of the blocks.
    """

    ratios: tuple[float, ...]
    roles: tuple[RoleStudy, ...]

    def position(self, ratio: float) -> int:
        """Return the place of a ratio in :attr:`ratios`.

        Raises:
            PlanError: It was not studied.
        """
        if ratio not in self.ratios:
            raise PlanError(f"ratio {ratio:g} was not studied: choose from {', '.join(f'{r:g}' for r in self.ratios)}.")
        return self.ratios.index(ratio)


class StudyResult(Result):
    """A study, and what it was made from.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        family: Family whose structure was used.
        ratio: The ratio that table and picture show.
        gradients: Whether errors are weighted with loss gradients, or with one measured number per projection.
        calibration: The calibration text.
        study: What was found.
        notes: Everything unusual that happened, one sentence each.
        versions: Versions of the software.
    """

    kind: Literal["study"] = "study"
    model: str
    model_fingerprint: str | None
    family: str
    ratio: float
    gradients: bool
    calibration: CalibrationReport
    study: SharingStudy
    notes: tuple[str, ...]
    versions: dict[str, str]
