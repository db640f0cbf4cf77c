"""The result of a study of sharing: for every pair of layers, one shared basis against two private ones."""

from typing import Literal

from basis_sharing.errors import PlanError
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.compression import CalibrationReport

Matrix = tuple[tuple[float | None, ...], ...]


class RoleAtRatio(Frozen):
    """The effect of sharing on one role at one ratio; a pair pays if its quotient is below 1.

    Attributes:
        ratio: Fraction of the parameters of a pair that is removed.
        pairs: Number of pairs that can be compared.
        pairs_paying: Number of these that pay.
        neighbours: Number of pairs of adjacent blocks that can be compared.
        neighbours_paying: Number of these that pay.
        best_pair: Blocks of the pair with the smallest quotient; None if no pair can be compared.
        best_gain: 1 - that quotient, the fraction of the private loss that sharing avoids; negative: it adds to it.
        best_neighbour: Smallest quotient of adjacent blocks; None if there are none.
        median_neighbour: Median quotient of adjacent blocks; None if there are none.
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
    """The study of the projections with one module path inside their blocks and one shape.

    Attributes:
        name: The role, with path or shape added if several are studied.
        role: Role of the projections.
        slot: Module path inside a block.
        d_in: Number of input features.
        d_out: Number of output features.
        layers: Blocks that have the projection, ascending; they index rows and columns of the matrices.
        quotients: Per ratio, the loss of one shared basis divided by that of two private ones, ``[layers][layers]``,
            symmetric; None on the diagonal, for pairs that are too far apart, and if the ratio leaves fewer
            parameters than rank 1 needs.
        shared_losses: Per ratio, the expected rise of the loss with the shared basis, in nats per token, arranged like
            ``quotients``.
        summaries: One per ratio.
        lowest_paying_ratio: The lowest studied ratio at which any pair pays; None: no pair pays at any.
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
        """Return the index of a ratio in :attr:`ratios`.

        Raises:
            PlanError: The ratio was not studied.
        """
        if ratio not in self.ratios:
            raise PlanError(f"ratio {ratio:g} was not studied: choose from {', '.join(f'{r:g}' for r in self.ratios)}.")
        return self.ratios.index(ratio)


class StudyResult(Result):
    """A study, with its model, calibration text and settings.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        family: Family whose structure was used.
        ratio: The ratio shown in table and picture.
        gradients: Whether errors are weighted with loss gradients; otherwise with one measured number per projection.
        calibration: The calibration text.
        study: The study.
        notes: Notes on unusual events, one sentence each.
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
