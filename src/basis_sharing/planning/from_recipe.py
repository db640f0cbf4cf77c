"""What plans a recipe: the fixed plan of a published method, or the planner with its measured candidates."""

from collections.abc import Iterator
from contextlib import contextmanager

from basis_sharing.calibration.collect import Calibration
from basis_sharing.errors import RecipeError
from basis_sharing.models.families import FAMILIES
from basis_sharing.models.family import ROLES, Decoder
from basis_sharing.planning.curves import stored_curves
from basis_sharing.planning.planner import Planner
from basis_sharing.plans.plan import Plan, PlannedFor, structure_of
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.run.files import output_errors
from basis_sharing.run.progress import ProgressCallback
from basis_sharing.run.run import Subject
from basis_sharing.treatments.factors.candidates import Candidates, Curves, find_candidates
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher


def fixed_plan(recipe: Recipe, decoder: Decoder) -> Plan:
    """Return the plan of a published method: the same rank for every group of a role."""
    assert recipe.exact_ratio is not None
    return uniform_plan(
        decoder,
        method=recipe.method,
        ratio=recipe.exact_ratio,
        group_size=recipe.group_size or recipe.preset.group_size,
        shared_roles=shared_roles_of(recipe, decoder),
        form=recipe.stored_form,
    )


def shared_roles_of(recipe: Recipe, decoder: Decoder) -> tuple[str, ...]:
    """Return the roles that share: as asked, by the named family's table, or by the model's own.

    Raises:
        RecipeError: A role or family to share is unknown.
    """
    present = {p.role for p in decoder.projections}
    if (recipe.group_size or recipe.preset.group_size) == 1:
        return ()
    if recipe.share is None:
        return tuple(role for role in decoder.family.shared_roles if role in present)
    tables = {family.name: family.shared_roles for family in FAMILIES}
    roles = [role for name in recipe.share for role in tables.get(name, (name,))]
    for role in roles:
        if role not in ROLES:
            raise RecipeError(
                f"unknown role {role!r} to share: name roles of {', '.join(ROLES)}, or a family of {', '.join(tables)}."
            )
    return tuple(role for role in ROLES if role in roles and role in present)


def planner_for(
    recipe: Recipe, subject: Subject, weigher: Weigher, calibration: Calibration, progress: ProgressCallback
) -> Planner:
    """Return the planner of a recipe, once all candidates are measured or taken from the subject's work folder."""
    return Planner(
        decoder=subject.decoder,
        candidates=_candidates(recipe, subject, weigher, calibration, progress),
        method=recipe.method,
        gradients=recipe.gradients,
        form=recipe.stored_form,
        rank_multiple=recipe.rank_multiple,
        planned_for=PlannedFor(
            model=subject.name, fingerprint=subject.fingerprint, structure=structure_of(subject.whole)
        ),
    )


def _candidates(
    recipe: Recipe, subject: Subject, weigher: Weigher, calibration: Calibration, progress: ProgressCallback
) -> Candidates:
    with known_curves(subject, weigher, calibration) as curves:
        return find_candidates(
            subject.model,
            subject.decoder,
            weigher,
            across_roles=recipe.across_roles,
            across_depth=recipe.across_depth,
            curves=curves,
            ranks=subject.machine.ranks,
            progress=progress,
        )


@contextmanager
def known_curves(subject: Subject, weigher: Weigher, calibration: Calibration) -> Iterator[Curves]:
    """Yield the loss curves that are known of a model and a text, to be read and added to.

    They stay in the subject's work folder; without one there are none yet, and what is added is forgotten.

    Raises:
        OutputError: The disk of the work folder is full or fails.
    """
    if subject.work is None:
        yield {}
        return
    about = {**calibration.about(subject.collected), "weighting": str(weigher.weighting)}
    folder = subject.work.shelf("curves", about)
    with output_errors(folder), stored_curves(folder) as curves:
        yield curves
