"""Progress events: the library reports, the command line draws."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """One step of a stage is finished.

    Attributes:
        stage: What is being done, in words a user reads ("calibrating").
        done: Units finished so far.
        total: Units of the whole stage.
        unit: What is counted ("blocks", "windows", "groups").
    """

    stage: str
    done: int
    total: int
    unit: str


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress events."""


def titled(progress: ProgressCallback, title: str) -> ProgressCallback:
    """Return a callback that puts a title before every stage, to tell those of several steps or models apart."""
    return lambda event: progress(replace(event, stage=f"{title}: {event.stage}"))
