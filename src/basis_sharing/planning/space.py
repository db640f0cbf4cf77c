"""The search space of the planner: all candidates of a model, their combinations, and their prices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from basis_sharing.costs.base import Cost
from basis_sharing.models.family import Compressible, Decoder
from basis_sharing.planning.allocation import Curve, Lane
from basis_sharing.plans.plan import AnyEntry
from basis_sharing.treatments.base import TREATMENTS, Candidate, Floats, Search, Treatment
from basis_sharing.treatments.scopes import Part, lanes_of, parts_in, ways_to_divide


@dataclass(frozen=True)
class Scope:
    """One or more projections with the candidates of all treatments for them.

    Attributes:
        projections: The projections.
        candidates: The candidates.
    """

    projections: tuple[Compressible, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Space:
    """All scopes of a model, and the combinations of them that are possible.

    Attributes:
        scopes: The scopes.
        lanes: The lanes, which refer to scopes by their positions; each projection is in one lane.
    """

    scopes: tuple[Scope, ...]
    lanes: tuple[Lane, ...]


def search_space(search: Search, treatments: Mapping[str, Treatment] = TREATMENTS) -> Space:
    """Return the space of the candidates of all treatments in the search's settings, after measuring them."""
    candidates = [c for name in search.planning.offered_treatments for c in treatments[name].candidates(search)]
    return arranged(search.decoder, candidates)


def arranged(decoder: Decoder, candidates: Iterable[Candidate]) -> Space:
    """Return the space of some candidates; every single projection is a scope too, so that it can stay dense."""
    by_scope: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        by_scope.setdefault(tuple(p.name for p in candidate.scope), []).append(candidate)
    for p in decoder.parts:
        by_scope.setdefault((p.name,), [])
    names = list(by_scope)
    index = {name: position for position, name in enumerate(names)}
    scopes = tuple(Scope(tuple(decoder.by_name[name] for name in scope), tuple(by_scope[scope])) for scope in names)
    lanes = []
    for blocks in lanes_of(decoder.parts, decoder):
        places = {p.name: (position, decoder.path_in_block(p)) for position, b in enumerate(blocks) for p in b}
        ways = ways_to_divide(blocks[0], decoder)
        segments: dict[Part, dict[tuple[int, int], int]] = {part: {} for part in parts_in(ways)}
        for scope in names:
            where = _segment(scope, places)
            if where is not None and where[0] in segments:
                segments[where[0]][where[1]] = index[scope]
        possible = tuple(way for way in ways if all(segments[part] for part in way))
        used = parts_in(possible)
        lanes.append(Lane(len(blocks), possible, {part: segments[part] for part in used}))
    return Space(scopes, tuple(lanes))


def _segment(scope: Sequence[str], places: Mapping[str, tuple[int, str]]) -> tuple[Part, tuple[int, int]] | None:
    """Return the part and the range of blocks that a scope covers in a lane; None if it is not in the lane."""
    if any(name not in places for name in scope):
        return None
    positions = [places[name][0] for name in scope]
    return frozenset(places[name][1] for name in scope), (min(positions), max(positions) + 1)


def restricted(space: Space, decoder: Decoder, *, across_depth: bool) -> Space:
    """Return the space without candidates across blocks, unless ``across_depth``; no candidate is measured again."""
    candidates = [
        candidate
        for scope in space.scopes
        if across_depth or len({p.block for p in scope.projections}) == 1
        for candidate in scope.candidates
    ]
    return arranged(decoder, candidates)


@dataclass(frozen=True)
class PricedScope:
    """The options of a scope with their prices, by rising cost; a single projection can also stay dense.

    Attributes:
        scope: The scope.
        curve: Losses and costs of the options.
        places: For every option the positions of its candidate and of the option in it; None: the scope stays dense.
    """

    scope: Scope
    curve: Curve
    places: tuple[tuple[int, int] | None, ...] = field(repr=False)

    def entry(self, position: int) -> AnyEntry | None:
        """Return the option at a position; None: the scope stays dense."""
        place = self.places[position]
        return None if place is None else self.scope.candidates[place[0]].options[place[1]]


def priced(scope: Scope, costs: Sequence[Cost]) -> PricedScope:
    """Return the options of a scope with their prices in every currency, without dominated ones (for one currency)."""
    prices: list[Floats] = []
    losses: list[Floats] = []
    places: list[tuple[int, int] | None] = []
    for number, candidate in enumerate(scope.candidates):
        if len(candidate.options):
            prices.append(np.stack([_of_all(cost, candidate) for cost in costs]))
            losses.append(candidate.losses)
            places += [(number, position) for position in range(len(candidate.options))]
    if len(scope.projections) == 1 or not places:
        prices.append(np.array([[float(cost.dense(scope.projections))] for cost in costs]))
        losses.append(np.zeros(1))
        places.append(None)
    all_prices, all_losses = np.concatenate(prices, axis=1), np.concatenate(losses)
    kept = _worth_keeping(all_prices, all_losses)
    limited = all_prices[:, kept]
    curve = Curve(limited[0], all_losses[kept], limited if len(costs) > 1 else None)
    return PricedScope(scope, curve, tuple(places[index] for index in kept))


def _worth_keeping(prices: Floats, losses: Floats) -> list[int]:
    """Return the positions of options by rising cost; with one currency, without those that a cheaper one dominates."""
    order = np.lexsort((losses, prices[0]))
    if len(prices) > 1:
        return [int(index) for index in order]
    kept: list[int] = []
    for index in map(int, order):
        if not kept or losses[index] < losses[kept[-1]]:
            kept.append(index)
    return kept


def _of_all(cost: Cost, candidate: Candidate) -> Floats:
    """Return the costs of all options of a candidate, priced together if its options support it."""
    options: Any = candidate.options
    if hasattr(options, "stored"):
        return np.asarray(cost.of(candidate.scope, options), dtype=float) * np.ones(len(options))
    return np.array([float(cost.of(candidate.scope, option)) for option in options])
