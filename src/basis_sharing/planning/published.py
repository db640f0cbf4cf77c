"""Plans of the published methods: shared roles, and the same rank for every group of a role."""

from fractions import Fraction

from basis_sharing.errors import RecipeError
from basis_sharing.models.families import FAMILIES
from basis_sharing.models.family import ROLES, Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Planning
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.treatments.rounded import grid_for


def published_plan(planning: Planning, ratio: Fraction, decoder: Decoder) -> Plan:
    """Return the plan of a published method at a ratio.

    Raises:
        RecipeError: A role or family to share is unknown.
        PlanError: A matrix is too small to keep a single basis vector at this ratio.
    """
    return uniform_plan(
        decoder,
        method=planning.method,
        ratio=ratio,
        group_size=planning.group_size or planning.preset.group_size,
        shared_roles=shared_roles_of(planning, decoder),
        form=planning.stored_form,
    )


def rounded_plan(planning: Planning, bits: int, decoder: Decoder) -> Plan:
    """Return the plan of a method that rounds all weights to one number of bits."""
    assert planning.preset.rounding is not None
    rounding = planning.preset.rounding
    entries = (Bits.of(p.name, grid_for(planning, bits, p.d_in), rounding) for p in decoder.projections)
    return Plan(method=planning.method, ratio=0.0, entries=tuple(entries))


def shared_roles_of(planning: Planning, decoder: Decoder) -> tuple[str, ...]:
    """Return the roles that share a basis across layers.

    They are those of the ``share`` setting, which may name families, or else those of the model's own family.

    Raises:
        RecipeError: A role or family to share is unknown.
    """
    present = {p.role for p in decoder.projections}
    if (planning.group_size or planning.preset.group_size) == 1:
        return ()
    if planning.share is None:
        return tuple(role for role in decoder.family.shared_roles if role in present)
    tables = {family.name: family.shared_roles for family in FAMILIES}
    roles = [role for name in planning.share for role in tables.get(name, (name,))]
    for role in roles:
        if role not in ROLES:
            raise RecipeError(
                f"unknown role {role!r} to share: name roles of {', '.join(ROLES)}, or a family of {', '.join(tables)}."
            )
    return tuple(role for role in ROLES if role in roles and role in present)
