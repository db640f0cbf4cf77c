"""Progress events, which the library reports and the command line displays."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """The progress of a stage after one of its steps.

    Attributes:
        stage: Name of the stage as shown to the user, e.g. "calibrating".
        done: Units finished so far.
        total: Units of the whole stage.
        unit: Name of the units, e.g. "blocks", "windows" or "groups".
    """

    stage: str
    done: int
    total: int
    unit: str


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress events."""


def titled(progress: ProgressCallback, title: str) -> ProgressCallback:
    """Return a callback that prefixes every stage with a title, to distinguish several steps or models."""
    return lambda event: progress(replace(event, stage=f"{title}: {event.stage}"))
