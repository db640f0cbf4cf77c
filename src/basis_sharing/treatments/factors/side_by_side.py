"""Bases that multiply one input, stored side by side, so that one product computes what all of them need."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from basis_sharing.models.family import Decoder
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.surgery import stored_basis_of
from basis_sharing.treatments.factors.common_order import Reordered


def side_by_side(model: Any, decoder: Decoder, entries: Sequence[Entry]) -> Iterator[Reordered]:
    """Yield the factors of one block whose bases can be one tensor, in which each has its own rows.

    They read one input in one way: plain, or pivoted with the same order and rank.

    Args:
        model: The model with the factors.
        decoder: Its structure.
        entries: Its entries, in their final order of inputs.
    """
    alike: dict[object, list[Factors]] = {}
    for entry in entries:
        inputs = {(p.block, p.input) for p in (decoder.by_name[name] for name in entry.members)}
        if isinstance(entry, Factors) and not entry.tensors and entry.rows is None and len(inputs) == 1:
            pivoted = (entry.rank, entry.pivots, entry.order) if entry.form == "pivoted" else None
            alike.setdefault((*inputs, pivoted), []).append(entry)
    for together in alike.values():
        if len(together) > 1:
            yield _joined(model, together)


def _joined(model: Any, entries: Sequence[Factors]) -> Reordered:
    """Return entries with their bases in the tensor of the first."""
    first, stored = entries[0], sum(entry.rank for entry in entries)
    joined, start = [], 0
    for entry in entries:
        beside = None if entry is first else first.owner
        joined.append(replace(entry, rows=(start, stored), beside=beside))
        start += entry.rank
    tensor = torch.cat([stored_basis_of(model, entry.owner) for entry in entries])
    return Reordered(tuple(joined), {f"{first.owner}.basis.weight": tensor})
