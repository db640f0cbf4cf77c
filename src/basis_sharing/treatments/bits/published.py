"""Expected losses of weights that are all rounded to the same number of bits, by the published methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from basis_sharing.linalg.rounding import loss_of_error
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.run.progress import Progress, ProgressCallback
from basis_sharing.runtime.entries_basis_sharing import Bits
from basis_sharing.treatments.base import Curves
from basis_sharing.treatments.bits.solve import rounded_as
from basis_sharing.weightings.base import Weighting


def rounded_losses(
    method: str,
    plans: Sequence[Plan],
    model: Any,
    decoder: Decoder,
    weighting: Weighting,
    curves: Curves,
    progress: ProgressCallback,
) -> list[float]:
    """Return the expected losses of plans that round every projection, in nats per token.

    Args:
        method: Name of the method.
        plans: Its plans, each for a number of bits.
        model: The dense model.
        decoder: Its structure.
        weighting: The planner's weighting.
        curves: Cache of measured losses; new ones are added.
        progress: Receives one event per projection.
    """
    totals = np.zeros(len(plans))
    for done, entries in enumerate(zip(*(plan.entries for plan in plans), strict=True), start=1):
        found = [entry for entry in entries if isinstance(entry, Bits)]
        p = decoder.projection_by_name[found[0].owner]
        key = (f"{Bits.kind} by {method} {' '.join(str(entry.weight_grid) for entry in found)}", p.name)
        if key not in curves:
            (member,) = weighting.problem(model, (p,))
            W, dtype = member.W.T.float(), weight(model, p).dtype
            errors = [rounded_as(entry, member, W, dtype).matrix() - W for entry in found]
            curves[key] = np.array([loss_of_error(error, member.G, member.H) for error in errors])
            progress(Progress(f"predicting {method}", done, len(decoder.projections), "projections"))
        totals += curves[key]
    return [float(total) for total in totals]
