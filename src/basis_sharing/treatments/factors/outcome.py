"""Conversion between the factors of one group and an outcome."""

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.linalg.pivoting import assemble
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import decode_pivots, encode_pivots
from basis_sharing.treatments.base import Outcome


@dataclass(frozen=True)
class GroupFactors:
    """The factors of one group, W_i ~ B C_i.

    Attributes:
        members: Module paths of the projections, the owner of the basis first.
        basis: The stored rows of B: shape ``[d_in, rank]``, or ``[d_in - rank, rank]`` if it is pivoted.
        coefficients: C_i of each member, shape ``[rank, d_out_i]``.
        pivots: Sorted indices of the rows of B that are the identity, shape ``[rank]``; None: not pivoted.
    """

    members: tuple[str, ...]
    basis: Tensor
    coefficients: tuple[Tensor, ...]
    pivots: Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of basis vectors."""
        return self.basis.shape[1]

    def full_basis(self) -> Tensor:
        """Return B, all rows, shape ``[d_in, rank]``."""
        if self.pivots is None:
            return self.basis
        rest = torch.ones(len(self.basis) + self.rank, dtype=torch.bool).index_fill_(0, self.pivots.long(), False)
        return assemble(self.pivots, rest.nonzero()[:, 0], self.basis)

    def entry(self) -> Factors:
        """Return the entry of these factors for plans and checkpoints."""
        if self.pivots is None:
            return Factors(members=self.members, rank=self.rank)
        code = encode_pivots(self.pivots, len(self.basis) + self.rank)
        return Factors(members=self.members, rank=self.rank, form="pivoted", pivots=code)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by their names on disk, transposed as in the modules."""
        weights = {f"{name}.weight": C.T for name, C in zip(self.members, self.coefficients, strict=True)}
        return {f"{self.members[0]}.basis.weight": self.basis.T, **weights}


def factors_of(outcome: Outcome) -> GroupFactors:
    """Return the factors in an outcome of this treatment."""
    entry, tensors = outcome.entry, outcome.tensors
    assert isinstance(entry, Factors)
    basis, pivots = tensors[f"{entry.owner}.basis.weight"].T, None
    if entry.pivots is not None:
        pivots = decode_pivots(entry.pivots, len(basis) + entry.rank, entry.rank)[0].long()
    coefficients = tuple(tensors[f"{name}.weight"].T for name in entry.members)
    return GroupFactors(entry.members, basis, coefficients, pivots)
