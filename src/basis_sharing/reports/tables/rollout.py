"""The table of a staged rollout: every step against the original, and the step that is kept."""

from basis_sharing.reports.table import Answer, Block, Column, Table, columns
from basis_sharing.reports.tables.cells import percent, size, times
from basis_sharing.results.rollout import Rollout, Step


def rollout_summary(rollout: Rollout) -> list[Block]:
    """Return the table of a rollout, and its outcome in one sentence."""
    return [rollout_table(rollout), Answer(rollout.sentence, rollout.best is not None)]


def rollout_table(rollout: Rollout) -> Table:
    """Return every step of a rollout, each against the original."""
    settings = rollout.settings
    limits = ", ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in settings.limits.given.items())
    note = (
        f"Compared on {settings.text}; limits: {limits}. Parameters and perplexity are multiples of the original's; "
        "prefill and decode: speed, above 1 is faster. Removed: share of the parameters of these roles."
    )
    numbers = ("removed", "parameters", "on disk", "perplexity", "mean KL, nats", "same token", "prefill", "decode")
    return Table(
        f"Rollout of {settings.model}",
        (Column("step"), Column("roles", "left"), *columns(*numbers, words=0), Column("limits")),
        tuple(
            (str(place), ", ".join(step.roles), *_cells(step), rollout.state(step))
            for place, step in enumerate(rollout.steps, start=1)
        ),
        (note,),
    )


def step_line(step: Step) -> str:
    """Return a step in one line, for the progress of a running rollout."""
    return (
        f"{step.name}: {step.parameters:,} parameters, perplexity {step.perplexity_quotient:.3f} x; "
        f"{step.verdict.sentence}"
    )


def _cells(step: Step) -> tuple[str, ...]:
    return (
        percent(step.ratio, 0),
        times(step.parameters / step.parameters_before, 3),
        size(step.bytes_on_disk),
        times(step.perplexity_quotient, 3),
        f"{step.mean_kl:.4f}",
        percent(step.top1),
        times(step.prefill_speed),
        times(step.decode_speed),
    )
