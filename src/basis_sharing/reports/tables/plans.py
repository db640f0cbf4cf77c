"""Tables of the differences of two plans."""

from pathlib import Path

from basis_sharing.plans.plan import Plan
from basis_sharing.reports.table import Block, Column, Table, columns
from basis_sharing.reports.tables.cells import NOTHING, percent
from basis_sharing.reports.tables.groups import block_of, group_of_each, groups_of
from basis_sharing.runtime.format_basis_sharing import Entry


def difference_of_files(first: Path, second: Path) -> list[Block]:
    """Return the difference of the plans in two files.

    Raises:
        PlanError: A file cannot be read or is not a valid plan.
    """
    return plan_difference(Plan.read(first), Plan.read(second), (first.name, second.name))


def plan_difference(first: Plan, second: Plan, names: tuple[str, str]) -> list[Block]:
    """Return a summary of two plans, and the projections that they treat differently.

    Args:
        first: One plan.
        second: The other.
        names: What they are called.
    """
    changes = plan_changes_table(first, second, names)
    glance = plans_table(first, second, names)
    return [glance, "Both plans treat every projection alike."] if changes is None else [glance, changes]


def plans_table(first: Plan, second: Plan, names: tuple[str, str]) -> Table:
    """Return method, size and expected loss of two plans."""
    plans = (first, second)
    rows = (
        ("method", *(plan.method for plan in plans)),
        ("removed", *(percent(plan.ratio, 2) for plan in plans)),
        ("groups", *(str(len(groups_of(plan))) for plan in plans)),
        ("expected nats per token", *(_expected(plan) for plan in plans)),
    )
    return Table("Two plans", columns("", *names), rows)


def plan_changes_table(first: Plan, second: Plan, names: tuple[str, str]) -> Table | None:
    """Return the projections whose group, rank or form differ between two plans; None if there are none."""
    ours, theirs = group_of_each(first), group_of_each(second)
    rows = []
    for projection in sorted(ours.keys() | theirs.keys(), key=_natural):
        cells = tuple(_treatment(groups.get(projection), projection) for groups in (ours, theirs))
        if cells[0] != cells[1]:
            rows.append((projection, *cells))
    note = f"{len(rows)} projections are treated differently."
    head = (Column("projection", "left"), *(Column(name, "left") for name in names))
    return Table("What becomes of each projection", head, tuple(rows), (note,)) if rows else None


def _expected(plan: Plan) -> str:
    return NOTHING if plan.prediction is None else f"{plan.prediction.nats_per_token:.4f}"


def _treatment(group: Entry | None, projection: str) -> str:
    if group is None:
        return "dense"
    others = [name for name in group.members if name != projection]
    return group.title + (f", with {', '.join(map(_short, others))}" if others else "")


def _short(name: str) -> str:
    return f"{block_of(name)}.{name.rpartition('.')[2]}"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
