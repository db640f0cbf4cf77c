"""The groups of a plan, and short names of projections."""

from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.format_basis_sharing import Entry


def groups_of(plan: Plan) -> tuple[Entry, ...]:
    """Return the groups of a plan."""
    return plan.entries


def group_of_each(plan: Plan) -> dict[str, Entry]:
    """Return the group of every projection that a plan compresses, by module path."""
    return {name: group for group in groups_of(plan) for name in group.members}


def block_of(name: str) -> str:
    """Return the number of the decoder block in a module path; empty if there is none."""
    return next((part for part in name.split(".") if part.isdigit()), "")


def sharing_counts(plan: Plan) -> tuple[int, int, int]:
    """Return the number of groups of a plan, of those shared across layers, and of those across roles of a layer."""
    blocks = [(len(group.members), len({block_of(name) for name in group.members})) for group in groups_of(plan)]
    across_layers = sum(count > 1 for _, count in blocks)
    return len(blocks), across_layers, sum(members > count for members, count in blocks)
