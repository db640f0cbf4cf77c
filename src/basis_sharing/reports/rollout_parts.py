"""The part of a report about the staged rollout that a folder came from."""

from basis_sharing.reports.parts import Table
from basis_sharing.results.rollout import Rollout, Step
from basis_sharing.results.words import amount_of_bytes

_NOTHING = "\u2013"


def rollout_table(rollout: Rollout) -> Table:
    """Return every step of a rollout, each against the original."""
    head = ("roles", "removed", "parameters", "on disk", "perplexity", "KL, nats", "same token", "speed", "limits")
    settings = rollout.settings
    limits = ", ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in settings.limits.given.items())
    note = (
        f"Compared on {settings.text}; limits: {limits}. Parameters and perplexity are multiples of the original's; "
        "speed: prompt and decoding, above 1 is faster. Removed: share of the parameters of these roles."
    )
    return Table("Steps", head, tuple(_row(step, rollout) for step in rollout.steps), (note,))


def _row(step: Step, rollout: Rollout) -> tuple[str, ...]:
    speeds = [_NOTHING if speed is None else f"{speed:.2f}" for speed in (step.prefill_speed, step.decode_speed)]
    return (
        ", ".join(step.roles),
        f"{step.ratio:.0%}",
        f"{step.parameters / step.parameters_before:.3f} \u00d7",
        amount_of_bytes(step.bytes_on_disk),
        f"{step.perplexity_quotient:.3f} \u00d7",
        f"{step.mean_kl:.4f}",
        f"{100 * step.top1:.1f} %",
        _NOTHING if step.prefill_speed is None and step.decode_speed is None else " / ".join(speeds),
        rollout.state(step),
    )
