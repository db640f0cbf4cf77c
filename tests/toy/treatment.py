"""The treatment ``toy``."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from basis_sharing.linalg.truncation import Member, loss_of
from basis_sharing.runtime.factorized_basis_sharing import encode_pivots
from basis_sharing.treatments.base import Candidate, Outcome, Search, Treatment
from toy.entry import TENSORS, Toy

SHARES = (0.25, 0.5, 0.75, 0.875)


class ToyTreatment(Treatment):
    """Reads some inputs of a projection, in eight bits."""

    kind: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a few inputs of a projection, in eight bits"

    def candidates(self, search: Search) -> Iterable[Candidate]:
        for p in search.decoder.projections:
            options = [Toy(members=(p.name,), count=int(share * p.d_in), tensors=TENSORS) for share in SHARES]
            key = (self.kind, p.name)
            if key not in search.curves:
                (member,) = search.weighting.problem(search.model, [p])
                search.curves[key] = np.array([_reduced(member, option.count)[-1] for option in options])
            yield Candidate((p,), options, search.curves[key])

    def solve(self, problem: Sequence[Member], entry: Any, dtype: torch.dtype) -> Outcome:
        (member,) = problem
        inputs, codes, scales, loss = _reduced(member, entry.count)
        solved = replace(entry, inputs=encode_pivots(inputs, member.shape[0]), tensors=TENSORS)
        tensors = {f"{entry.owner}.weight": codes, f"{entry.owner}.scales": scales}
        return Outcome(solved, tensors, loss, relative_loss=loss / loss_of(member, member.W))


def _reduced(member: Member, count: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the inputs, codes ``[d_out, count]``, scales ``[d_out]``, and what is lost."""
    W = member.W
    S = member.S.apply(torch.eye(len(W), dtype=W.dtype))
    inputs = (S.square().sum(0) * W.square().sum(1)).topk(count).indices.sort().values
    kept = torch.linalg.lstsq(S[:, inputs], S @ W).solution
    scales = (kept.abs().amax(0) / 127).float()
    codes = (kept / scales.double()).round().clamp(-127, 127)
    error = W.index_add(0, inputs, codes * scales.double(), alpha=-1)
    return inputs, codes.T.to(torch.int8), scales, loss_of(member, error)
