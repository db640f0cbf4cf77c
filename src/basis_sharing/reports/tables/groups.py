"""The groups of a plan, and the names of projections in few words."""

from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.format_basis_sharing import Entry


def groups_of(plan: Plan) -> tuple[Entry, ...]:
    """Return the groups of a plan."""
    return plan.entries


def group_of_each(plan: Plan) -> dict[str, Entry]:
    """Return the group of every projection that a plan compresses, by the module path of the projection."""
    return {name: group for group in groups_of(plan) for name in group.members}


def block_of(name: str) -> str:
    """Return the number of the decoder block that a module path leads to; empty where it leads to none."""
    return next((part for part in name.split(".") if part.isdigit()), "")


def sharing_counts(plan: Plan) -> tuple[int, int, int]:
    """Return how many groups a plan has, how many share across layers, and how many across roles of one layer."""
    blocks = [(len(group.members), len({block_of(name) for name in group.members})) for group in groups_of(plan)]
    across_layers = sum(count > 1 for _, count in blocks)
    return len(blocks), across_layers, sum(members > count for members, count in blocks)
