"""The table of an estimate: time, memory and disk space, stage by stage."""

import shutil
from pathlib import Path

from basis_sharing.reports.table import Table, columns
from basis_sharing.results.estimate import Estimate
from basis_sharing.run.machine import written


def estimate_table(found: Estimate, output: Path) -> Table:
    """Return time and memory of every stage, and the needs of the whole run.

    Args:
        found: The estimate.
        output: Output folder of the run, for the free space of its disk.
    """
    existing = next(path for path in [output.absolute(), *output.absolute().parents] if path.exists())
    shared = f", divided among {found.processes} processes" if found.processes > 1 else ""
    notes = (
        f"Text: {found.windows} calibration windows of {found.length} tokens{shared}.",
        f"Memory: at least {written(found.least_memory)}, of {written(found.memory)} that the run may take.",
        f"Disk: {written(found.work_bytes)} while it runs, and at most {written(found.output_bytes)} for the result; "
        f"{written(shutil.disk_usage(existing).free)} are free.",
        "Time is meant within a factor of two. Nothing was read but shapes and the text, and nothing was written.",
    )
    return Table(
        "What the run will need",
        columns("stage", "time", "memory"),
        tuple((stage.name, duration(stage.seconds), written(found.resident + stage.memory)) for stage in found.stages),
        notes,
        footer=("in all", duration(found.seconds), written(found.least_memory)),
    )


def duration(seconds: float) -> str:
    """Return a time in a suitable unit, e.g. ``"12 min"``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
