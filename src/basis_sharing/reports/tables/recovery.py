"""The table of a recovery: losses and perplexities before and after the training."""

from basis_sharing.reports.table import Table, columns
from basis_sharing.reports.tables.cells import quotient
from basis_sharing.results.recovery import RecoveryReport

_LOSSES = {"distillation": "KL divergence from the original", "next-token": "negative log-likelihood"}


def recovery_table(report: RecoveryReport) -> Table:
    """Return losses and perplexities of the compressed and of the recovered model."""
    held_out = f"{_LOSSES[report.settings.loss]}, {report.held_out} windows held out"
    measured = [(held_out, report.loss_before, report.loss_after)]
    for before, after in zip(report.perplexity_before, report.perplexity_after, strict=True):
        measured.append((f"perplexity, {before.text}", before.perplexity, after.perplexity))
    rows = tuple((name, f"{old:,.4f}", f"{new:,.4f}", quotient(new, old)) for name, old, new in measured)
    title = "Compressed and recovered (same structure and size)"
    return Table(title, columns("", "compressed", "recovered", "quotient"), rows, tuple(_sentences(report)))


def _sentences(report: RecoveryReport) -> list[str]:
    trained = "LoRA on the coefficients, merged" if report.settings.train == "lora" else "Factors and norms"
    sentences = [
        f"{trained}: {report.steps:,} steps of {report.settings.length} tokens from {report.windows:,} windows of "
        f"{report.settings.calibration}."
    ]
    if report.slowed:
        often = "once" if report.slowed == 1 else f"{report.slowed} times"
        sentences.append(f"The rate was cut to a third {often}, where the loss had grown.")
    if report.diverged:
        sentences.append(
            "The training diverged and was stopped: the best state before is kept (try a lower --learning-rate)."
        )
    elif report.loss_after >= report.loss_before:
        sentences.append(
            "Nothing was gained: the factors are as they were (try a lower --learning-rate, or more text)."
        )
    return sentences
