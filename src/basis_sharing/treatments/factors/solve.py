"""Carry out a plan: bases and coefficients for every group, and the later refit of the coefficients."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.errors import NumericalError
from basis_sharing.linalg.least_squares import refit_coefficients
from basis_sharing.linalg.pivoting import pivot
from basis_sharing.linalg.truncation import Member, Truncation, loss_of, truncate
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.plans.plan import Plan, PlanGroup, multiplications, stored_parameters
from basis_sharing.run.processes import Ranks
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.runtime.surgery import GroupFactors, basis_of, set_coefficients
from basis_sharing.treatments.factors.files import read_outcome, write_outcome
from basis_sharing.treatments.factors.outcome import GroupOutcome
from basis_sharing.weightings.weighting import Weigher, ridge_of


def factorize(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    weigher: Weigher,
    *,
    remembered: MutableMapping[tuple[str, ...], Truncation] | None = None,
    folder: Path | None = None,
    ranks: Ranks | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[GroupOutcome]:
    """Yield the factors of every group of a plan; the model is not changed.

    Args:
        model: The dense model.
        decoder: Its structure.
        plan: What to make.
        weigher: Poses the problem of each group.
        remembered: Decompositions by members, read and added to: plans of several ratios share most of theirs. All of
            them come from one model and one weigher.
        folder: Where finished groups are kept for this plan; those that an interrupted run has left there are taken.
        ranks: The processes that divide the groups among them; each yields all of them.
        progress: Receives one event per group that is solved.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
        OSError: The disk of ``folder`` is full or fails.
    """
    ranks = ranks or Ranks()
    known = {projection.name: projection for projection in decoder.projections}
    owners = _owners([[known[name] for name in group.members] for group in plan.groups], ranks.size)
    own = [index for index, owner in enumerate(owners) if owner == ranks.rank]

    def keep(index: int, outcome: GroupOutcome) -> GroupOutcome:
        """Return an outcome as it lies in its file, where there is one."""
        if folder is None:
            return outcome
        write_outcome(outcome, _file(folder, index))
        return read_outcome(_file(folder, index)) or outcome

    def solve(position: int) -> GroupOutcome:
        index = own[position]
        group = plan.groups[index]
        kept = None if folder is None else read_outcome(_file(folder, index))
        if kept is not None:
            return kept
        outcome = keep(index, _solve(model, group, [known[name] for name in group.members], weigher, remembered))
        progress(Progress("factorizing", position + 1, len(own), "groups"))
        return outcome

    if ranks.size == 1:
        yield from map(solve, range(len(own)))
        return
    # All are solved before the first is exchanged: nobody waits for a decomposition of another process.
    solved = {index: solve(position) for position, index in enumerate(own)}
    for index, owner in enumerate(owners):
        outcome = ranks.given_by(owner, solved.pop(index, None))
        yield outcome if owner == ranks.rank else keep(index, outcome)


def _file(folder: Path, index: int) -> Path:
    return folder / f"group-{index:05d}.safetensors"


def _owners(groups: Sequence[Sequence[Projection]], processes: int) -> list[int]:
    """Divide groups among processes: the next largest goes to the one that has the least to do."""
    work = [group[0].d_in ** 2 * (group[0].d_in + sum(p.d_out for p in group)) for group in groups]
    owners, loads = [0] * len(groups), [0] * processes
    for index in sorted(range(len(groups)), key=lambda i: -work[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners


def _solve(
    model: Any,
    group: PlanGroup,
    members: Sequence[Projection],
    weigher: Weigher,
    remembered: MutableMapping[tuple[str, ...], Truncation] | None,
) -> GroupOutcome:
    problem, dtype = weigher.problem(model, members), weight(model, members[0]).dtype
    found = truncate(problem) if remembered is None else remembered.get(group.members) or truncate(problem)
    if remembered is not None:
        remembered[group.members] = found
    not_pivoted = None
    if group.form == "pivoted":
        factors, not_pivoted = _pivot(group, problem, found, dtype)
    else:
        factors = _plain(group.members, found, group.rank, dtype)
    lost = found.losses[factors.rank].item()
    return GroupOutcome(
        factors=factors,
        loss=lost,
        relative_loss=lost / found.total if found.total > 0 else 0.0,
        ridge=max(ridge_of(member.S) for member in problem),
        not_pivoted=not_pivoted,
    )


def _plain(members: tuple[str, ...], found: Truncation, rank: int, dtype: torch.dtype) -> GroupFactors:
    coefficients = tuple(C.to("cpu", dtype) for C in found.coefficients(rank))
    return GroupFactors(members, found.basis[:, :rank].to("cpu", dtype), coefficients)


def _pivot(
    group: PlanGroup, problem: Sequence[Member], found: Truncation, dtype: torch.dtype
) -> tuple[GroupFactors, str | None]:
    """Return pivoted factors, or plain ones of at most that size where those are better as stored, and the reason."""
    d_in, d_outs = len(found.basis), tuple(member.shape[1] for member in problem)
    outputs = sum(d_outs)
    # The plan may have been made for a number of parameters or of multiplications: neither may grow.
    plain_rank = max(
        1,
        min(
            stored_parameters(d_in, outputs, group.rank, "pivoted") // (d_in + outputs),
            multiplications(d_in, d_outs, group.rank, "pivoted") // multiplications(d_in, d_outs, 1, "plain"),
        ),
    )

    def plain() -> GroupFactors:
        return _plain(group.members, found, plain_rank, dtype)

    try:
        pivoting = pivot(found.basis[:, : group.rank])
    except NumericalError:
        return plain(), "its basis has dependent columns"

    def stored_error(factors: GroupFactors) -> float:
        B = factors.full_basis().to(found.basis)
        pairs = zip(problem, factors.coefficients, strict=True)
        return sum(loss_of(member, member.W - B @ C.to(B)) for member, C in pairs)

    coefficients = tuple((pivoting.transform @ C).to("cpu", dtype) for C in found.coefficients(group.rank))
    pivoted = GroupFactors(group.members, pivoting.stored.to("cpu", dtype), coefficients, pivoting.pivots.cpu())
    larger = plain_rank * (d_in + outputs) > stored_parameters(d_in, outputs, group.rank, "pivoted")  # rank 1
    error = stored_error(pivoted)
    # Rounding never gains anything worth having: what plain factors lose before it settles most cases.
    surely_better = error <= found.losses[plain_rank].item()
    if not (larger or surely_better):
        other = plain()
        if error > stored_error(other):
            return other, f"rounding to {str(dtype).removeprefix('torch.')} costs it more than the higher rank gains"
    return pivoted, None


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
