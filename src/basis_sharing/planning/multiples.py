"""Multiples that ranks are rounded to: given, or chosen for every shape from measured times."""

from collections.abc import Sequence
from dataclasses import dataclass

from basis_sharing.costs.base import Scope
from basis_sharing.costs.time import Time
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.recipe.planning import Form, Planning
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import Shape

_MULTIPLES = (1, 8, 16, 32, 64, 128)
_FEWEST_RANKS = 24  # of the smaller side of a projection
_MOST_TIMED_RANKS = 40
_TOLERANCE = 1.04  # of the best time per multiplication
_TRIED = (0.25, 0.5)  # ranks, as fractions of the smaller side


@dataclass(frozen=True)
class Multiples:
    """The multiple of the ranks of every shape.

    Attributes:
        of_shape: ``(d_in, d_out)`` -> multiple.
    """

    of_shape: dict[Shape, int]

    def __call__(self, scope: Scope) -> int:
        """Return the multiple for a group, the largest of its projections'."""
        return max(self.of_shape[p.d_in, p.d_out] for p in scope)

    @property
    def rounds(self) -> bool:
        """Whether any rank is rounded."""
        return max(self.of_shape.values(), default=1) > 1

    def bounded(self) -> "Multiples":
        """Return multiples so large that every shape has at most 40 ranks, whose times can all be measured."""
        return Multiples({shape: _bounded(*shape, multiple) for shape, multiple in self.of_shape.items()})

    def __str__(self) -> str:
        found = sorted(set(self.of_shape.values()))
        return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _bounded(d_in: int, d_out: int, multiple: int) -> int:
    while min(d_in, d_out) > multiple * _MOST_TIMED_RANKS:
        multiple *= 2
    return multiple


def multiples_for(planning: Planning, decoder: Decoder, times: Sequence[Time]) -> Multiples:
    """Return the multiples that the settings ask for.

    With ``auto`` the smallest multiple is chosen whose ranks run within a few per cent of the best rate, in time per
    multiplication, that any multiple reaches. A multiple is allowed if the smaller side of the projection has at least
    24 multiples of it.

    Args:
        planning: Settings of the planner.
        decoder: The projections.
        times: The time of every phase; not used where only one multiple is allowed.
    """
    first = {(p.d_in, p.d_out): p for p in reversed(decoder.projections)}
    given = planning.rank_multiple
    if given != "auto":
        return Multiples(dict.fromkeys(first, int(given)))
    form = planning.stored_form
    trials = {shape: _trials(shape) for shape in first}
    for time in times:
        time.measure(
            operation
            for shape, p in first.items()
            if len(trials[shape]) > 1
            for ranks in trials[shape].values()
            for operation in time.needed((p,), [_option(p, rank, form) for rank in ranks])
        )
    return Multiples({shape: _fast_enough(p, trials[shape], form, times) for shape, p in first.items()})


def _trials(shape: Shape) -> dict[int, tuple[int, ...]]:
    """Return the allowed multiples of a shape, each with ranks that are no multiple of a larger one."""
    d_in, small = shape[0], min(shape)
    allowed = [m for m in _MULTIPLES if m == 1 or (small >= _FEWEST_RANKS * m and d_in % m == 0)]
    return {multiple: tuple(_near(share * small, multiple) for share in _TRIED) for multiple in allowed}


def _near(rank: float, multiple: int) -> int:
    """Return the odd multiple of a number that is next to a rank."""
    return multiple * (2 * round((rank / multiple - 1) / 2) + 1)


def _option(p: Projection, rank: int, form: Form) -> Factors:
    return Factors(members=(p.name,), rank=rank, form=form)


def _fast_enough(p: Projection, trials: dict[int, tuple[int, ...]], form: Form, times: Sequence[Time]) -> int:
    """Return the smallest multiple that is about as fast per multiplication as the best one."""
    if len(trials) == 1:
        return next(iter(trials))
    slowness = {}
    for multiple, ranks in trials.items():
        slowness[multiple] = [
            time.of((p,), option)
            / sum(product.d_in * product.d_out for product in option.products([(p.d_in, p.d_out)], 1))
            for time in times
            for option in (_option(p, rank, form) for rank in ranks)
        ]
    best = [min(column) for column in zip(*slowness.values(), strict=True)]
    means = {
        multiple: sum(slow / least for slow, least in zip(row, best, strict=True)) / len(best)
        for multiple, row in slowness.items()
    }
    return next(multiple for multiple, mean in means.items() if mean <= _TOLERANCE * min(means.values()))
