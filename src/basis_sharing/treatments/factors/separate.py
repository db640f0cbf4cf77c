"""The least loss of several groups when a total cost is divided among them."""

from collections.abc import Sequence

import numpy as np

from basis_sharing.treatments.base import Floats
from basis_sharing.treatments.factors.candidates import Group


def separate_losses(pieces: Sequence[Group], costs: Floats) -> Floats:
    """Return the least total loss of several groups at given total costs, on the lower convex hulls of their curves.

    Losses between ranks are interpolated; they are infinite where a cost is less than that of rank 1 for all groups.
    """
    steps: list[tuple[float, float, float]] = []
    first_cost, first_loss = 0.0, 0.0
    for piece in pieces:
        x, y = piece.costs, piece.losses[1:]
        hull = _lower_hull(x, y)
        widths, drops = np.diff(x[hull]), np.diff(y[hull])
        steps += zip(drops / widths, widths, drops, strict=True)
        first_cost += x[0]
        first_loss += y[0]
    steps.sort()
    x = np.cumsum([first_cost, *(width for _, width, _ in steps)])
    y = np.cumsum([first_loss, *(drop for _, _, drop in steps)])
    return np.interp(costs, x, y, left=np.inf)


def _lower_hull(x: Floats, y: Floats) -> list[int]:
    """Return the positions of the lower convex hull of points with ascending x, up to the lowest y."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    while len(hull) > 1 and y[hull[-1]] >= y[hull[-2]]:
        hull.pop()
    return hull
