"""The table ``basis-sharing recover`` prints."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.results.recovery import RecoveryReport

_LOSSES = {"distillation": "KL divergence from the original", "next-token": "negative log-likelihood"}


def recovery_table(report: RecoveryReport) -> RenderableType:
    """Return what a recovery gained, and what it learned from."""
    table = Table(box=box.SIMPLE_HEAD, title="Compressed and recovered (same structure and size)", title_justify="left")
    table.add_column("", overflow="fold")
    for column in ("compressed", "recovered", "quotient"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [
        (
            f"{_LOSSES[report.settings.loss]}, {report.held_out} windows kept apart",
            report.loss_before,
            report.loss_after,
        )
    ]
    for before, after in zip(report.perplexity_before, report.perplexity_after, strict=True):
        rows.append((f"perplexity, {before.text}", before.perplexity, after.perplexity))
    for name, first, second in rows:
        table.add_row(name, f"{first:,.4f}", f"{second:,.4f}", f"{second / first:.3f} x" if first else "-")
    trained = "LoRA on the coefficients, merged" if report.settings.train == "lora" else "factors and norms"
    told = [
        f"{trained}: {report.steps:,} steps of {report.settings.length} tokens from {report.windows:,} windows of "
        f"{report.settings.calibration}"
    ]
    if report.slowed:
        times = "once" if report.slowed == 1 else f"{report.slowed} times"
        told.append(f"the rate was cut to a third {times}, where the loss had grown")
    if report.diverged:
        told.append(
            "the training diverged and was stopped: the best state before is kept (try a lower --learning-rate)"
        )
    elif report.loss_after >= report.loss_before:
        told.append("nothing was gained: the factors are as they were (try a lower --learning-rate, or more text)")
    return Group(table, *(Text(f"  {line}") for line in told))
