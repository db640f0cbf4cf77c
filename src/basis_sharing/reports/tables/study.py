"""The table of a sharing study: where one basis for two layers pays, by role, and a conclusion in one sentence."""

from collections.abc import Mapping

from basis_sharing.reports.table import Column, Table, columns
from basis_sharing.reports.tables.cells import NOTHING, number
from basis_sharing.results.study import RoleAtRatio, RoleStudy, SharingStudy


def study_table(study: SharingStudy, model: str, ratio: float) -> Table:
    """Return the effect of sharing a basis between two layers on each role, at one of the studied ratios.

    Raises:
        PlanError: The ratio was not studied.
    """
    position = study.position(ratio)
    counts = ("neighbours losing less", "all pairs losing less", "median neighbour", "best neighbour")
    return Table(
        f"{model}: one basis for two layers against two private ones of the same stored size, at ratio {ratio:g}",
        (
            Column("role", "left"),
            Column("in x out"),
            *columns(*counts, "best pair", "its gain", "lowest ratio that pays", words=0),
        ),
        tuple(_row(role, role.summaries[position]) for role in study.roles),
        ("Median and best neighbour: expected loss, shared / private; below 1 sharing loses less.",),
    )


def conclusion(study: SharingStudy, ratio: float) -> str:
    """Return one sentence about where sharing is expected to pay."""
    at = {role.name: role.summaries[study.position(ratio)] for role in study.roles}
    paying = {name: summary for name, summary in at.items() if summary.pairs_paying}
    later = [role.name for role in study.roles if role.name not in paying and role.lowest_paying_ratio is not None]
    never = [role.name for role in study.roles if role.lowest_paying_ratio is None]
    span = f"any of the ratios {study.ratios[0]:g} to {study.ratios[-1]:g}"
    if len(never) == len(study.roles):
        return (
            f"Expected from second-order statistics, not measured on text: no pair of layers gains from sharing a "
            f"basis, in any role, at {span}."
        )
    parts = [_gains(paying, ratio) if paying else f"at ratio {ratio:g} sharing loses more for every pair of every role"]
    if later:
        parts.append(f"for {', '.join(later)} only at other ratios")
    if never:
        parts.append(f"for {', '.join(never)} at none of the ratios {study.ratios[0]:g} to {study.ratios[-1]:g}")
    return f"Expected from second-order statistics, not measured on text: {'; '.join(parts)}."


def _row(role: RoleStudy, at: RoleAtRatio) -> tuple[str, ...]:
    return (
        role.name,
        f"{role.d_in} x {role.d_out}",
        f"{at.neighbours_paying} of {at.neighbours}",
        f"{at.pairs_paying} of {at.pairs}",
        number(at.median_neighbour, ".3f"),
        number(at.best_neighbour, ".3f"),
        NOTHING if at.best_pair is None else f"{at.best_pair[0]}, {at.best_pair[1]}",
        NOTHING if at.best_gain is None else f"{100 * at.best_gain:+.1f} %",
        "never" if role.lowest_paying_ratio is None else f"{role.lowest_paying_ratio:g}",
    )


def _gains(paying: Mapping[str, RoleAtRatio], ratio: float) -> str:
    counts = ", ".join(f"{at.pairs_paying} of {at.pairs} pairs of {name}" for name, at in paying.items())
    name, best = max(paying.items(), key=lambda item: item[1].best_gain or 0.0)
    assert best.best_pair is not None
    assert best.best_gain is not None
    layers = f"{name}, layers {best.best_pair[0]} and {best.best_pair[1]}"
    return f"at ratio {ratio:g} sharing loses less for {counts}, at best {100 * best.best_gain:.1f} % less ({layers})"
