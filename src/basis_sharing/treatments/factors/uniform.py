"""Uniform plans, as the published methods use them: groups of consecutive layers, with equal ranks within a role."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import isqrt

from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Form
from basis_sharing.runtime.entries_basis_sharing import Factors


def uniform_rank(d_in: int, d_outs: Sequence[int], ratio: Fraction, form: Form = "plain") -> int:
    """Return the largest rank at which a group keeps at most the fraction 1 - ratio of its parameters.

    For the plain form k = floor(n d_in d_out (1 - r) / (d_in + n d_out)) with n projections of one shape (Basis
    Sharing, section 3.3). The pivoted form stores k^2 numbers less, so its rank is higher.
    """
    outputs = sum(d_outs)
    budget = d_in * outputs * (1 - ratio)
    if form == "plain":
        return int(budget / (d_in + outputs))
    # k (s - k) <= b is equivalent to k <= (s - sqrt(s^2 - 4 b)) / 2; integer arithmetic keeps the result exact.
    side, kept = d_in + outputs, int(budget)
    rank = (side - isqrt(side**2 - 4 * kept)) // 2
    return rank if rank * (side - rank) <= kept else rank - 1


def uniform_plan(
    decoder: Decoder,
    *,
    method: str,
    ratio: Fraction,
    group_size: int,
    shared_roles: Sequence[str],
    form: Form = "plain",
) -> Plan:
    """Return a plan with consecutive layers of the shared roles in groups, each with the rank of :func:`uniform_rank`.

    The last group of a role is smaller if ``group_size`` does not divide the number of layers. A group also ends where
    the shape of a role changes between layers.

    Raises:
        PlanError: A matrix is too small to keep a single basis vector at this ratio.
    """
    groups = []
    for role in sorted({p.role for p in decoder.projections}):
        projections = [p for p in decoder.projections if p.role == role]
        size = group_size if role in shared_roles else 1
        for members in _segments(projections, size):
            rank = uniform_rank(members[0].d_in, [p.d_out for p in members], ratio, form)
            if rank < 1:
                raise PlanError(f"{members[0].name} is too small for ratio {float(ratio):g}: choose a smaller ratio.")
            # Sort groups with the same input next to each other, so that their whitening is computed once.
            position = (members[-1].block, members[0].block, members[0].input)
            groups.append((position, Factors(members=tuple(p.name for p in members), rank=rank, form=form)))
    groups.sort(key=lambda item: item[0])
    return Plan(method=method, ratio=float(ratio), entries=tuple(group for _, group in groups))


def _segments(projections: Sequence[Projection], size: int) -> Iterator[list[Projection]]:
    """Yield the projections of one role, in depth order, in runs of one shape and at most ``size`` projections."""
    segment: list[Projection] = []
    for projection in projections:
        shape = (projection.d_in, projection.d_out)
        if segment and (len(segment) == size or (segment[0].d_in, segment[0].d_out) != shape):
            yield segment
            segment = []
        segment.append(projection)
    if segment:
        yield segment
