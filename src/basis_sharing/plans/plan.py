"""The plan as data: which projections share a basis, at which rank, and what that is expected to cost."""

import json
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.recipe.recipe import Form

Rank = TypeVar("Rank", int, NDArray[np.int64])


def stored_parameters(d_in: int, outputs: int, rank: Rank, form: Form) -> Rank:
    """Return how many numbers a group stores: k (a + b), less k^2 if it is pivoted (DESIGN 3.3)."""
    return rank * (d_in + outputs) - (rank**2 if form == "pivoted" else 0)


def multiplications(d_in: int, d_outs: tuple[int, ...], rank: Rank, form: Form) -> Rank:
    """Return how many multiplications a group needs per token: every member multiplies with the whole basis."""
    stored = d_in - rank if form == "pivoted" else d_in
    return rank * (stored * len(d_outs) + sum(d_outs))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanGroup(_Frozen):
    """One basis and the projections that use it.

    Attributes:
        members: Module paths of the projections in depth order; the first one owns the basis. One member: private.
        rank: Number of basis vectors.
        form: How the factors are stored: all of them, or without the identity that pivoting makes of ``rank`` rows.
        loss: Expected rise of the loss in nats per token; None where the method does not predict it.
    """

    members: tuple[str, ...] = Field(min_length=1)
    rank: int = Field(ge=1)
    form: Form = "plain"
    loss: float | None = None


class PlannedFor(_Frozen):
    """The model a plan was made for.

    Attributes:
        model: The model as it was given.
        fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        structure: Hash of the names and shapes of its projections, see :func:`structure_of`.
    """

    model: str
    fingerprint: str | None
    structure: str


class Prediction(_Frozen):
    """What a plan is expected to cost.

    Attributes:
        loss: Sum of the expected losses of the groups, in nats per token.
        scale: Measured loss rise divided by the expected one, from one measured plan; None: not measured.
        scale_error: Standard error of ``scale``, from the spread between windows.
        text: The text it was measured on.
    """

    loss: float
    scale: float | None = None
    scale_error: float | None = None
    text: str | None = None

    @property
    def nats_per_token(self) -> float:
        """The best guess of the true loss rise."""
        return self.loss * (1.0 if self.scale is None else self.scale)


class Plan(_Frozen):
    """Everything factorization has to know; projections in no group stay dense.

    Attributes:
        version: Version of this schema.
        method: Method whose weighting and refit rule apply.
        ratio: Fraction of the parameters that the plan removes from the compressible projections.
        gradients: Whether errors are weighted with loss gradients; only for methods that can.
        planned_for: The model it was made for; None: any model with these projections.
        prediction: What it is expected to cost; None where the method does not predict it.
        groups: The groups, no projection in two of them.
    """

    version: Literal[1] = 1
    method: str
    ratio: float
    gradients: bool = False
    planned_for: PlannedFor | None = None
    prediction: Prediction | None = None
    groups: tuple[PlanGroup, ...]

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"unknown method {value!r}, choose from {', '.join(PRESETS)}")
        return value

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan, also one that was edited by hand.

        Raises:
            PlanError: The file cannot be read or is not a plan; says where.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"the plan {path} cannot be read ({error.strerror}): check the path.") from None
        except UnicodeDecodeError:
            raise PlanError(f"the plan {path} is not text: give a JSON file that `basis-sharing plan` wrote.") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise PlanError(f"the plan {path} is not valid at {place}: {first['msg']}.") from None

    def write(self, path: Path) -> None:
        """Write the plan as JSON, one group per line so that it is easy to edit.

        Raises:
            OSError: The file cannot be written.
        """
        data = self.model_dump(mode="json")
        groups = ",\n".join("    " + json.dumps(group) for group in data.pop("groups"))
        head = json.dumps(data, indent=2).removesuffix("\n}")
        path.write_text(f'{head},\n  "groups": [\n{groups}\n  ]\n}}\n', encoding="utf-8")

    def check(self, decoder: Decoder) -> None:
        """Make sure that the plan fits a model.

        Raises:
            PlanError: Names the first projection that is unknown, used twice, or does not fit its group.
        """
        known = {projection.name: projection for projection in decoder.projections}
        if not self.groups:
            raise PlanError("the plan has no groups: nothing would be compressed.")
        if self.planned_for is not None and self.planned_for.structure != structure_of(decoder):
            raise PlanError(
                f"the plan was made for {self.planned_for.model}, whose projections have other names or shapes: plan "
                "this model anew."
            )
        uses = Counter(name for group in self.groups for name in group.members)
        for name, count in uses.items():
            if name not in known:
                raise PlanError(f"the plan names {name}, which this model does not have or cannot compress.")
            if count > 1:
                raise PlanError(f"the plan puts {name} into {count} groups; a projection has one basis.")
        for group in self.groups:
            members = [known[name] for name in group.members]
            widths = {member.d_in for member in members}
            if len(widths) > 1:
                raise PlanError(f"the group of {group.members[0]} mixes inputs of {sorted(widths)} features.")
            most = most_rank(members)
            if group.rank > most:
                raise PlanError(
                    f"the group of {group.members[0]} has rank {group.rank}, but its matrices have at most {most}."
                )

    def parameters(self, decoder: Decoder) -> int:
        """Return the parameters of the compressible projections under the plan."""
        known, left = _members(self, decoder)
        return sum(p.d_in * p.d_out for p in left) + sum(
            stored_parameters(known[g.members[0]].d_in, sum(known[m].d_out for m in g.members), g.rank, g.form)
            for g in self.groups
        )

    def multiplications(self, decoder: Decoder) -> int:
        """Return the multiplications per token of the compressible projections under the plan."""
        known, left = _members(self, decoder)
        return sum(p.d_in * p.d_out for p in left) + sum(
            multiplications(known[g.members[0]].d_in, tuple(known[m].d_out for m in g.members), g.rank, g.form)
            for g in self.groups
        )

    def removed_fraction(self, decoder: Decoder) -> float:
        """Return the fraction of parameters that the plan removes from the compressible projections."""
        return 1 - self.parameters(decoder) / dense_parameters(decoder)


def dense_parameters(decoder: Decoder) -> int:
    """Return the parameters of all compressible projections; as many multiplications they need per token."""
    return sum(projection.d_in * projection.d_out for projection in decoder.projections)


def most_rank(members: list[Projection]) -> int:
    """Return the highest rank that a group can make use of."""
    return min(members[0].d_in, sum(member.d_out for member in members))


def structure_of(decoder: Decoder) -> str:
    """Return a hash of the names and shapes of all projections."""
    lines = "\n".join(f"{p.name} {p.d_in} {p.d_out}" for p in decoder.projections)
    return blake2b(lines.encode(), digest_size=8).hexdigest()


def _members(plan: Plan, decoder: Decoder) -> tuple[Mapping[str, Projection], list[Projection]]:
    """Return all projections by name, and those that stay dense."""
    used = {name for group in plan.groups for name in group.members}
    return (
        {projection.name: projection for projection in decoder.projections},
        [projection for projection in decoder.projections if projection.name not in used],
    )
