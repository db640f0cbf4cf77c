"""The table of a staged rollout."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.reports.tables import mebibytes
from basis_sharing.results.rollout import Rollout, Step


def rollout_table(rollout: Rollout) -> RenderableType:
    """Return every step against the original, and which one is kept."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Rollout of {rollout.settings.model}", title_justify="left")
    table.add_column("step", no_wrap=True)
    table.add_column("roles", overflow="fold")
    for column in ("removed", "parameters", "on disk", "perplexity", "mean KL", "agreement", "prefill", "decode"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limits", no_wrap=True)
    for number, step in enumerate(rollout.steps, start=1):
        table.add_row(str(number), ", ".join(step.roles), *_cells(step), rollout.state(step))
    return Group(table, Text(f"  {rollout.sentence}"))


def step_line(step: Step) -> str:
    """Return one step in one line, for while a rollout is running."""
    return (
        f"{step.name}: {step.parameters:,} parameters, perplexity {step.perplexity_quotient:.3f} x; "
        f"{step.verdict.sentence}"
    )


def _cells(step: Step) -> tuple[str, ...]:
    return (
        f"{step.ratio:.0%}",
        f"{step.parameters / step.parameters_before:.3f} x",
        mebibytes(step.bytes_on_disk),
        f"{step.perplexity_quotient:.3f} x",
        f"{step.mean_kl:.4f}",
        f"{step.top1:.1%}",
        _times(step.prefill_speed),
        _times(step.decode_speed),
    )


def _times(speed: float | None) -> str:
    return "-" if speed is None else f"{speed:.2f} x"
