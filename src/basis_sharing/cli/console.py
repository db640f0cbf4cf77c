"""Consoles and progress bars of the command line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from basis_sharing.run.progress import Progress, ProgressCallback, silent

_WIDTH_OF_A_FILE = 120

out = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
err = Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Yield a callback that shows one bar per stage on standard error, in the first of several processes only."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield silent
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
    )
    tasks: dict[str, TaskID] = {}

    def show(event: Progress) -> None:
        if event.stage not in tasks:
            tasks[event.stage] = bars.add_task(event.stage, total=event.total, unit=event.unit)
        bars.update(tasks[event.stage], completed=event.done, total=event.total)

    with bars:
        yield show


def written(output: Path, loader: str) -> None:
    """Print where a compressed model was written, and how to load it."""
    out.print(
        f"\n  written to {output}; load it with\n  import basis_sharing; {loader}.from_pretrained({str(output)!r})\n",
        highlight=False,
    )
