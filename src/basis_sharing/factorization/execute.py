"""Carry out a plan: bases and coefficients for every group, and the later refit of the coefficients."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.errors import NumericalError
from basis_sharing.factorization.weighting import InputWhitening, ridge_of
from basis_sharing.layers.surgery import GroupFactors, basis_of, set_coefficients
from basis_sharing.linalg.least_squares import refit_coefficients
from basis_sharing.linalg.pivoting import Pivoting, pivot
from basis_sharing.linalg.truncation import Truncation, truncate
from basis_sharing.linalg.whitening import Whitening
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.plan import Plan, stored_parameters
from basis_sharing.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True)
class GroupOutcome:
    """The factors of one group and what they lose.

    Attributes:
        factors: Basis and coefficients in fp64.
        relative_loss: Share of the weighted energy ||S W||^2 that is lost.
        ridge: Relative ridge the second moment needed, 0 for none.
        not_pivoted: Why a group that should be pivoted is not; None where all is as planned.
    """

    factors: GroupFactors
    relative_loss: float
    ridge: float
    not_pivoted: str | None = None


def factorize(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    whitening: InputWhitening,
    *,
    progress: ProgressCallback = silent,
) -> Iterator[GroupOutcome]:
    """Yield the factors of every group of a plan; the model is not changed.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
    """
    known = {projection.name: projection for projection in decoder.projections}
    for done, group in enumerate(plan.groups, start=1):
        members = [known[name] for name in group.members]
        W = torch.cat([weight(model, projection).double() for projection in members], dim=1).cpu()
        S = whitening.of(members)
        found, pivoting, not_pivoted = truncate(W, S, group.rank), None, None
        if group.form == "pivoted":
            plain = found.leading(_plain_rank(W, group.rank))
            pivoting, not_pivoted = _pivot(W, S, found, plain, weight(model, members[0]).dtype)
            if pivoting is None:
                found = plain
        C = found.coefficients if pivoting is None else pivoting.transform @ found.coefficients
        yield GroupOutcome(
            factors=GroupFactors(
                members=group.members,
                basis=found.basis if pivoting is None else pivoting.stored,
                coefficients=tuple(C.split([p.d_out for p in members], dim=1)),
                pivots=None if pivoting is None else pivoting.pivots,
            ),
            relative_loss=found.lost / found.total if found.total > 0 else 0.0,
            ridge=ridge_of(S),
            not_pivoted=not_pivoted,
        )
        progress(Progress("factorizing", done, len(plan.groups), "groups"))


def _pivot(
    W: Tensor, S: Whitening, found: Truncation, plain: Truncation, dtype: torch.dtype
) -> tuple[Pivoting | None, str | None]:
    """Pivot the factors ``found``, unless ``plain`` ones of that size are better once both are stored in ``dtype``.

    Returns:
        The pivoting, or None and the reason in words.
    """
    try:
        pivoting = pivot(found.basis)
    except NumericalError:
        return None, "its basis has dependent columns"

    def stored_error(B: Tensor, C: Tensor) -> float:
        return S.apply(W - B.to(dtype).double() @ C.to(dtype).double()).square().sum().item()

    pivoted_error = stored_error(pivoting.basis(), pivoting.transform @ found.coefficients)
    if pivoted_error > stored_error(plain.basis, plain.coefficients):
        return None, f"rounding to {str(dtype).removeprefix('torch.')} costs it more than the higher rank gains"
    return pivoting, None


def _plain_rank(W: Tensor, rank: int) -> int:
    """Return the rank at which plain factors are as large as pivoted ones of ``rank``."""
    d_in, outputs = W.shape
    return max(1, stored_parameters(d_in, outputs, rank, "pivoted") // (d_in + outputs))


def refit(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    originals: Mapping[str, Tensor],
    moments: MomentStore,
    *,
    progress: ProgressCallback = silent,
) -> dict[str, float]:
    """Refit all coefficients of a compressed model to its own inputs, bases fixed (Basis Sharing, section 3.4).

    The targets are the original weights; the second moments are those of the compressed model's inputs, summed over
    a group.

    Args:
        model: Compressed model; its coefficients are overwritten.
        decoder: Structure of the original model.
        plan: The plan that was executed.
        originals: Original weight of every projection in the plan, shape ``[d_in, d_out]``.
        moments: Second moments of the inputs in the compressed model.
        progress: Receives one event per group.

    Returns:
        The relative ridge of every group that needed one, by owner.

    Raises:
        NumericalError: The second moments are indefinite beyond repair.
    """
    known: dict[str, Projection] = {projection.name: projection for projection in decoder.projections}
    ridges: dict[str, float] = {}
    for done, group in enumerate(plan.groups, start=1):
        members = [known[name] for name in group.members]
        G = moments.total([(p.block, p.input) for p in members]).gram
        assert G is not None
        basis = basis_of(model, group.members[0]).double().cpu()
        W = torch.cat([originals[p.name].double().cpu() for p in members], dim=1)
        C, ridge = refit_coefficients(basis, G.double(), W)
        if ridge > 0:
            ridges[group.members[0]] = ridge
        for projection, part in zip(members, C.split([p.d_out for p in members], dim=1), strict=True):
            set_coefficients(model, projection.name, part)
        progress(Progress("refitting", done, len(plan.groups), "groups"))
    return ridges
