"""What a run will need, as a table."""

import shutil
from pathlib import Path

from rich.console import Group
from rich.table import Table

from basis_sharing.results.estimate import Estimate
from basis_sharing.run.machine import written


def estimate_table(found: Estimate, output: Path) -> Group:
    """Return time, memory and disk of a run, stage by stage."""
    table = Table(title="what the run will need", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("stage", "left"), ("time", "right"), ("memory", "right")):
        table.add_column(name, justify=justify)
    for stage in found.stages:
        table.add_row(stage.name, duration(stage.seconds), written(found.resident + stage.memory))
    table.add_row("in all", duration(found.seconds), written(found.least_memory))
    existing = next(path for path in [output.absolute(), *output.absolute().parents] if path.exists())
    lines = [
        "",
        f"text: {found.windows} calibration windows of {found.length} tokens"
        + (f", divided among {found.processes} processes" if found.processes > 1 else ""),
        f"memory: at least {written(found.least_memory)}, of {written(found.memory)} that the run may take",
        f"disk: {written(found.work_bytes)} while it runs, and at most {written(found.output_bytes)} for the result; "
        f"{written(shutil.disk_usage(existing).free)} are free",
        "Time is meant within a factor of two. Nothing was read but shapes and the text, and nothing was written.",
    ]
    return Group(table, *lines)


def duration(seconds: float) -> str:
    """Return a time as a person would say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
