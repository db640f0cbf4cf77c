"""The plan as data: which projections share a basis, at which rank."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.recipe import Form


def stored_parameters(d_in: int, outputs: int, rank: int, form: Form) -> int:
    """Return how many numbers a group stores: k (a + b), less k^2 if it is pivoted (DESIGN 3.3)."""
    return rank * (d_in + outputs) - (rank**2 if form == "pivoted" else 0)


class PlanGroup(BaseModel):
    """One basis and the projections that use it.

    Attributes:
        members: Module paths of the projections in depth order; the first one owns the basis. One member: private.
        rank: Number of basis vectors.
        form: How the factors are stored: all of them, or without the identity that pivoting makes of ``rank`` rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[str, ...] = Field(min_length=1)
    rank: int = Field(ge=1)
    form: Form = "plain"


class Plan(BaseModel):
    """Everything factorization has to know; projections in no group stay dense.

    Attributes:
        version: Version of this schema.
        method: Method whose weighting and refit rule apply.
        ratio: Ratio that was asked for.
        groups: The groups, no projection in two of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    method: str
    ratio: float
    groups: tuple[PlanGroup, ...]

    def check(self, decoder: Decoder) -> None:
        """Make sure that the plan fits a model.

        Raises:
            PlanError: Names the first projection that is unknown, used twice, or does not fit its group.
        """
        known = {projection.name: projection for projection in decoder.projections}
        uses = Counter(name for group in self.groups for name in group.members)
        for name, count in uses.items():
            if name not in known:
                raise PlanError(f"the plan names {name}, which this model does not have or cannot compress.")
            if count > 1:
                raise PlanError(f"the plan puts {name} into {count} groups; a projection has one basis.")
        for group in self.groups:
            widths = {known[name].d_in for name in group.members}
            if len(widths) > 1:
                raise PlanError(f"the group of {group.members[0]} mixes inputs of {sorted(widths)} features.")
            if group.rank > min(widths):
                raise PlanError(
                    f"the group of {group.members[0]} has rank {group.rank}, more than its {widths} inputs."
                )

    def removed_fraction(self, decoder: Decoder) -> float:
        """Return the fraction of parameters that the plan removes from the compressible projections."""
        known = {projection.name: projection for projection in decoder.projections}
        before = sum(projection.d_in * projection.d_out for projection in decoder.projections)
        saved = 0
        for group in self.groups:
            members = [known[name] for name in group.members]
            outputs = sum(member.d_out for member in members)
            saved += members[0].d_in * outputs - stored_parameters(members[0].d_in, outputs, group.rank, group.form)
        return saved / before
