"""A common order of the inputs for pivoted factors that read one input, so that the input is put in order once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from basis_sharing.linalg.nesting import nested_order
from basis_sharing.models.family import Decoder
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.factorized_basis_sharing import encode_pivots
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.surgery import basis_of, coefficients_of

LARGEST = 4.0
"""The largest entry of B~ with which a common order is used; with pivots of its own a basis has at most 1.05."""
_MOST_COLUMNS = 16  # columns of all bases of a common order, as a multiple of the number of inputs


@dataclass(frozen=True)
class Reordered:
    """Entries with another order of their inputs.

    Attributes:
        entries: The entries.
        tensors: The parameters that change with it, by their names in the model, in the layout of the modules.
    """

    entries: tuple[Factors, ...]
    tensors: dict[str, Tensor]


def common_orders(model: Any, decoder: Decoder, entries: Sequence[Entry], device: torch.device) -> Iterator[Reordered]:
    """Yield the pivoted entries that read one input, with a common order and with the factors that belong to it.

    Entries that share a basis between blocks connect the inputs of these blocks, which then have one order. Where an
    entry of a B~ would be larger than :data:`LARGEST`, the entries of single blocks get a common order in each block,
    or else all keep pivots of their own.

    Args:
        model: The model with the factors.
        decoder: Its structure.
        entries: Its entries.
        device: Device of the computation, with fp64.
    """
    # The pivots of factors that are packed in few bits stay as they are.
    factors = [entry for entry in entries if isinstance(entry, Factors) and not entry.tensors]
    pivoted = [entry for entry in factors if entry.form == "pivoted"]
    for together in _connected(pivoted, decoder):
        found = _reordered(model, together, device)
        if found is not None:
            yield found
            continue
        single = [entry for entry in together if len({decoder.by_name[name].block for name in entry.members}) == 1]
        if len(single) < len(together):
            alone = (_reordered(model, part, device) for part in _connected(single, decoder))
            yield from (found for found in alone if found is not None)


def _connected(entries: Iterable[Factors], decoder: Decoder) -> list[list[Factors]]:
    """Return the sets of two or more entries that are connected by the inputs they read."""
    sets: list[tuple[set[tuple[int, str]], list[Factors]]] = []
    for entry in entries:
        inputs = {(p.block, p.input) for p in (decoder.by_name[name] for name in entry.members)}
        near = [known for known in sets if known[0] & inputs]
        sets = [known for known in sets if not known[0] & inputs]
        sets.append((inputs.union(*(known[0] for known in near)), [*(e for known in near for e in known[1]), entry]))
    return [together for _, together in sets if len(together) > 1]


def _reordered(model: Any, entries: Sequence[Factors], device: torch.device) -> Reordered | None:
    """Return entries in a common order; None if an entry of a B~ would be too large."""
    entries = sorted(entries, key=lambda entry: entry.rank)
    bases = [basis_of(model, entry.owner).to(device, torch.float64) for entry in entries]
    d_in = len(bases[0])
    if len(entries) < 2 or sum(entry.rank for entry in entries) > _MOST_COLUMNS * d_in:
        return None
    chosen = nested_order([torch.linalg.qr(B)[0] for B in bases]).cpu()
    ranks = sorted({entry.rank for entry in entries})
    codes = {rank: encode_pivots(chosen[:rank], d_in) for rank in ranks}
    order = _by_segments(chosen, ranks, d_in).to(device)
    tensors: dict[str, Tensor] = {}
    for entry, B in zip(entries, bases, strict=True):
        leading, others = B[order].split((entry.rank, d_in - entry.rank))
        stored = torch.linalg.solve(leading, others, left=False)
        if not bool((stored.abs() <= LARGEST).all()):
            return None
        tensors[f"{entry.owner}.basis.weight"] = stored.T
        for name in entry.members:
            C = coefficients_of(model, name).to(device, torch.float64)
            tensors[f"{name}.coeff.weight"] = (leading @ C).T
    nested = tuple(codes[rank] for rank in ranks)
    return Reordered(tuple(replace(e, pivots=codes[e.rank], order=nested) for e in entries), tensors)


def _by_segments(chosen: Tensor, ranks: Sequence[int], d_in: int) -> Tensor:
    """Return all inputs in order, shape ``[d_in]``: what each rank adds, then the others, each in ascending order."""
    parts = [chosen[start:stop].sort().values for start, stop in pairwise([0, *ranks])]
    free = torch.ones(d_in, dtype=torch.bool).index_fill_(0, chosen, False)
    return torch.cat([*parts, free.nonzero()[:, 0]])
