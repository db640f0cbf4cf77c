"""The sharing study in a table and in one sentence."""

from rich import box
from rich.console import RenderableType
from rich.table import Table

from basis_sharing.planning.study import RoleAtRatio, SharingStudy


def study_table(study: SharingStudy, model: str, ratio: float) -> RenderableType:
    """Return what sharing a basis between two layers does to each role, at one of the studied ratios."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{model}: one basis for two layers against two private ones of the same stored size, at ratio {ratio:g}",
        title_justify="left",
    )
    table.add_column("role", overflow="fold")
    table.add_column("in x out", no_wrap=True)
    for column in (
        "neighbours that\nlose less",
        "all pairs that\nlose less",
        "loss, shared / private\nmedian neighbour",
        "\nbest neighbour",
        "best\npair",
        "its\ngain",
        "lowest ratio at\nwhich a pair pays",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    position = study.position(ratio)
    for role in study.roles:
        at = role.summaries[position]
        table.add_row(
            role.name,
            f"{role.d_in} x {role.d_out}",
            f"{at.neighbours_paying} of {at.neighbours}",
            f"{at.pairs_paying} of {at.pairs}",
            _quotient(at.median_neighbour),
            _quotient(at.best_neighbour),
            "-" if at.best_pair is None else f"{at.best_pair[0]}, {at.best_pair[1]}",
            "-" if at.best_gain is None else percent(at.best_gain),
            "never" if role.lowest_paying_ratio is None else f"{role.lowest_paying_ratio:g}",
        )
    return table


def conclusion(study: SharingStudy, ratio: float) -> str:
    """Return one sentence that says where sharing is expected to pay, and where not."""
    at = {role.name: role.summaries[study.position(ratio)] for role in study.roles}
    paying = {name: found for name, found in at.items() if found.pairs_paying}
    later = [role.name for role in study.roles if role.name not in paying and role.lowest_paying_ratio is not None]
    never = [role.name for role in study.roles if role.lowest_paying_ratio is None]
    span = f"any of the ratios {study.ratios[0]:g} to {study.ratios[-1]:g}"
    if len(never) == len(study.roles):
        return (
            f"Expected from second-order statistics, not measured on text: no pair of layers gains from sharing a "
            f"basis, in any role, at {span}."
        )
    parts = []
    if paying:
        parts.append(f"at ratio {ratio:g} sharing loses less for {', '.join(_paying(n, a) for n, a in paying.items())}")
    else:
        parts.append(f"at ratio {ratio:g} sharing loses more for every pair of every role")
    if later:
        parts.append(f"for {', '.join(later)} only at other ratios")
    if never:
        parts.append(f"for {', '.join(never)} at none of the ratios {study.ratios[0]:g} to {study.ratios[-1]:g}")
    return f"Expected from second-order statistics, not measured on text: {'; '.join(parts)}."


def percent(gain: float) -> str:
    """Format a gain with its sign."""
    return f"{100 * gain:+.1f} %"


def _paying(name: str, at: RoleAtRatio) -> str:
    assert at.best_pair is not None
    assert at.best_gain is not None
    where = f"{at.neighbours_paying} of {at.neighbours} neighbours and {at.pairs_paying} of {at.pairs} pairs of {name}"
    return f"{where} (best: {at.best_pair[0]} with {at.best_pair[1]}, {100 * at.best_gain:.1f} % less)"


def _quotient(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
