"""Factors in few bits as candidates: what their rounding costs is measured at a few ranks."""

from collections.abc import Sequence

from basis_sharing.costs.base import shapes_of
from basis_sharing.linalg.truncation import truncate
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Projection
from basis_sharing.runtime.entries_basis_sharing import Factors, most_rank
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.treatments.base import Candidate, CurveKey, Floats, Search
from basis_sharing.treatments.factors.options import FactorOptions, worthwhile
from basis_sharing.treatments.factors.rounding import between_samples, rounding_losses
from basis_sharing.treatments.measuring import measure_missing
from basis_sharing.treatments.rounded import factor_grids_for

Scope = tuple[Projection, ...]


def rounded_candidates(scopes: Sequence[Scope], search: Search) -> list[Candidate]:
    """Return candidates for single projections with all grids that the settings offer beside the treatment ``bits``.

    The losses of the ranks have to be in ``search.curves``.
    """
    if "bits" not in search.planning.offered_treatments:
        return []
    single = [scope for scope in scopes if len(scope) == 1]
    found = [(scope, factor_grids_for(search.planning, scope[0].d_in)) for scope in single]
    _measure(search, found)
    return [_candidate(scope, grid, search) for scope, grids in found for grid in grids]


def _key(scope: Scope, grid: Grid) -> CurveKey:
    return (f"{Factors.kind} {grid}", *(p.name for p in scope))


def _candidate(scope: Scope, grid: Grid, search: Search) -> Candidate:
    options = worthwhile(scope, search.planning.stored_form, search.multiple(scope))
    truncation = search.curves[(Factors.kind, *(p.name for p in scope))]
    excess = between_samples(search.curves[_key(scope, grid)], options.ranks, most_rank(shapes_of(scope)))
    return Candidate(
        scope,
        FactorOptions(options.members, options.ranks, options.form, grid),
        truncation[options.ranks] + excess,
    )


def _measure(search: Search, scopes: Sequence[tuple[Scope, Sequence[Grid]]]) -> None:
    """Measure what rounding costs where it is not known."""

    def measured(item: tuple[Scope, Sequence[Grid]]) -> dict[CurveKey, Floats]:
        scope, grids = item
        (member,) = problem = search.weighting.problem(search.model, scope)
        dtype = weight(search.model, scope[0]).dtype
        found = rounding_losses(member, truncate(problem), search.planning.stored_form, grids, dtype)
        return {_key(scope, grid): losses for grid, losses in found.items()}

    missing = [
        (scope, grids) for scope, grids in scopes if any(_key(scope, grid) not in search.curves for grid in grids)
    ]
    measure_missing(search, missing, measured, "measuring rounded factors")
