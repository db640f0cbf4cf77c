"""How often a calibration text visits experts."""

from collections.abc import Sequence

import torch

from basis_sharing.models.family import Decoder
from basis_sharing.runtime.expert_entries_basis_sharing import ExpertFactors, Narrow
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.weightings.base import Weighting

_SELDOM = 0.1  # of the mean of all experts of a block


def visits_note(weighting: Weighting, decoder: Decoder, entries: Sequence[Entry]) -> list[str]:
    """Return a sentence on experts that are to become cheaper and are seldom or never visited; none if there are none.

    Args:
        weighting: The weighting with its statistics.
        decoder: Structure of the model.
        entries: The entries to be carried out.
    """
    narrow = {entry.owner for entry in entries if isinstance(entry, (Narrow, ExpertFactors))}
    never = seldom = count = 0
    for experts in decoder.experts:
        if experts.name in narrow and weighting.moments is not None:
            visits = weighting.moments.get(experts.block, experts.reads.input).visits
            if visits is not None and bool(visits.any()):
                count += experts.count
                never += int((visits == 0).sum())
                seldom += int((visits < _SELDOM * visits.to(torch.float64).mean()).sum())
    if not seldom:
        return []
    return [
        f"The calibration text gives {seldom} of {count} experts less than a tenth of the tokens that they get on "
        f"average, and {never} of them none: what they need is taken from the others of their block. "
        "More windows (--windows), or a text like those that the model will read, would measure them."
    ]
