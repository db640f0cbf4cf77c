"""Losses of candidates that are not known yet, measured by all processes together."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from basis_sharing.run.progress import Progress
from basis_sharing.treatments.base import CurveKey, Floats, Search

T = TypeVar("T")


def measure_missing(
    search: Search, missing: Sequence[T], losses_of: Callable[[T], Mapping[CurveKey, Floats]], stage: str
) -> None:
    """Add the losses of items to the curves of a search; with several processes each measures its share.

    Args:
        search: The search.
        missing: The items, the same in all processes.
        losses_of: Returns the losses of one item, by their keys in the curves.
        stage: Name of the work in progress events, which count projections.
    """
    processes, new = search.processes, dict[CurveKey, Floats]()
    own = processes.own(missing)
    for done, item in enumerate(own, start=1):
        found = losses_of(item)
        new.update(found)
        search.curves.update(found)
        search.progress(Progress(stage, done, len(own), "projections"))
    if processes.count > 1:
        for others in processes.gather(new):
            search.curves.update(others)
