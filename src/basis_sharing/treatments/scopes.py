"""Which projections can form a scope: runs of blocks, and the ways to divide the projections of a block.

A *lane* is a run of consecutive blocks with the same projections, in the same shapes, on inputs of one name. A *part*
is a set of projections of a block, named by their paths in the block. A scope is a part in one block or in consecutive
blocks of a lane.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TypeVar

from basis_sharing.models.family import Compressible, Decoder

Part = frozenset[str]
P = TypeVar("P", bound=Compressible)

_MOST_JOINT_ROLES = 4


def lanes_of(parts: Sequence[P], decoder: Decoder) -> Iterator[list[list[P]]]:
    """Yield the lanes of some parts of a decoder, each as a list with the parts on the lane's input for every block."""
    by_place: dict[tuple[str, int], list[P]] = {}
    for part in parts:
        by_place.setdefault((part.input, part.block), []).append(part)
    for name in dict.fromkeys(part.input for part in parts):
        lane: list[list[P]] = []
        for index in range(len(decoder.blocks)):
            block = by_place.get((name, index), [])
            if lane and _shape(lane[-1], decoder) != _shape(block, decoder):
                yield lane
                lane = []
            if block:
                lane.append(block)
        if lane:
            yield lane


def _shape(block: Sequence[Compressible], decoder: Decoder) -> list[tuple[str, int, int]]:
    return [(decoder.path_in_block(p), p.d_in, p.d_out) for p in block]


def ways_to_divide(
    block: Sequence[Compressible], decoder: Decoder, *, across_roles: bool = True
) -> tuple[tuple[Part, ...], ...]:
    """Return the ways to divide the projections of a block into parts; without ``across_roles``, into single ones."""
    paths = [decoder.path_in_block(p) for p in block]
    return _partitions(paths) if across_roles else (tuple(frozenset([path]) for path in paths),)


def _partitions(paths: Sequence[str]) -> tuple[tuple[Part, ...], ...]:
    """Return all partitions of paths; for more than four paths only the finest and the coarsest one."""
    finest = tuple(frozenset([path]) for path in paths)
    if len(paths) == 1:
        return (finest,)
    if len(paths) > _MOST_JOINT_ROLES:
        return (finest, (frozenset(paths),))
    first, *rest = paths
    partitions: list[tuple[Part, ...]] = []
    for size in range(len(paths)):
        for others in combinations(rest, size):
            left = [path for path in rest if path not in others]
            tails = _partitions(left) if left else ((),)
            partitions += [(frozenset([first, *others]), *tail) for tail in tails]
    return tuple(partitions)


def parts_in(ways: Sequence[Sequence[Part]]) -> list[Part]:
    """Return the distinct parts of several ways to divide a block, in order of their first occurrence."""
    return list(dict.fromkeys(part for way in ways for part in way))


def scope_of(part: Part, blocks: Sequence[Sequence[P]], decoder: Decoder) -> tuple[P, ...]:
    """Return the projections of a part in some blocks."""
    return tuple(p for block in blocks for p in block if decoder.path_in_block(p) in part)
