"""Factors of the matrices of single experts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from basis_sharing.linalg.truncation import Member, loss_of, truncate
from basis_sharing.runtime.expert_entries_basis_sharing import ExpertFactors
from basis_sharing.treatments.base import Outcome


def solve_factors(
    members: Mapping[str, Sequence[Member]], biases: Mapping[str, Tensor], entry: ExpertFactors, dtype: torch.dtype
) -> Outcome:
    """Return the factors of all matrices, and those that stay dense.

    Args:
        members: The matrix of every expert with its weightings, by name of the weight.
        biases: The biases of the experts by name.
        entry: The entry.
        dtype: Dtype in which tensors are stored.

    Raises:
        NumericalError: A weight contains NaN or infinity.
    """
    tensors = {f"{entry.owner}.{name}": bias.cpu().clone() for name, bias in biases.items()}
    loss = total = 0.0
    for name, own in members.items():
        parts: dict[str, list[Tensor]] = {"": [], "_basis": [], "_coeff": []}
        for member, rank in zip(own, entry.ranks[name], strict=True):
            if rank == 0:
                total += loss_of(member, member.W)
                parts[""].append(member.W.T.to("cpu", dtype)[None])
                continue
            found = truncate([member])
            total += found.total
            (C,) = found.coefficients(rank)
            Q, R = torch.linalg.qr(found.basis[:, :rank])  # so that numbers between the factors keep their size
            parts["_basis"].append(Q.T.to("cpu", dtype))
            parts["_coeff"].append((R @ C).to("cpu", dtype))
            loss += found.losses[rank].item()
        tensors |= {f"{entry.owner}.{name}{part}": torch.cat(found) for part, found in parts.items() if found}
    return Outcome(entry, tensors, loss, loss / total if total > 0 else 0.0)
