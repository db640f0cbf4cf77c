"""Refit of all coefficients of a compressed model to its own inputs, with fixed bases (Basis Sharing, section 3.4)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.linalg.least_squares import refit_coefficients
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.surgery import basis_of, set_coefficients


def refit(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    originals: Mapping[str, Tensor],
    moments: MomentStore,
    *,
    progress: ProgressCallback = silent,
) -> dict[str, float]:
    """Overwrite the coefficients of all factors of a plan with the optimum for the compressed model's inputs.

    The targets are the original weights; the second moments are those of the compressed model's inputs, summed over
    each group (:func:`~basis_sharing.linalg.least_squares.refit_coefficients`).

    Args:
        model: Compressed model; its coefficients are overwritten.
        decoder: Structure of the original model.
        plan: The plan that was carried out.
        originals: Original weight of every projection in the plan, shape ``[d_in, d_out]``.
        moments: Second moments of the inputs in the compressed model.
        progress: Receives one event per group.

    Returns:
        Owner of a group -> relative ridge, for every group whose equations needed one.

    Raises:
        NumericalError: The matrix B^T G B of a group is indefinite beyond repair.
    """
    ridges: dict[str, float] = {}
    groups = [entry for entry in plan.entries if isinstance(entry, Factors) and not entry.tensors]
    for done, group in enumerate(groups, start=1):
        members = [decoder.by_name[name] for name in group.members]
        G = moments.total([(p.block, p.input) for p in members]).gram
        assert G is not None
        basis = basis_of(model, group.owner).double().cpu()
        W = torch.cat([originals[p.name].double().cpu() for p in members], dim=1)
        C, ridge = refit_coefficients(basis, G.double(), W)
        if ridge > 0:
            ridges[group.owner] = ridge
        for projection, part in zip(members, C.split([p.d_out for p in members], dim=1), strict=True):
            set_coefficients(model, projection.name, part)
        progress(Progress("refitting", done, len(groups), "groups"))
    return ridges
