"""The sharing study against brute force, and what it says where nothing can be compared."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from basis_sharing.calibration.moments import Moments, MomentStore
from basis_sharing.errors import ModelError, NumericalError, PlanError
from basis_sharing.linalg.truncation import Member, loss_of, truncate
from basis_sharing.models.families import LLAMA
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.results.study import SharingStudy
from basis_sharing.run.progress import Progress
from basis_sharing.treatments.factors.study import RATIOS, study_sharing
from basis_sharing.weightings.loss import Loss
from basis_sharing.weightings.none import Unweighted

WIDTH = 24


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(weights: Sequence[torch.Tensor | None]) -> tuple[nn.Module, Decoder]:
    """Return a model whose blocks have one projection each, from weights ``[d_in, d_out]``; None: a block without."""
    model, projections = nn.Module(), []
    blocks = nn.ModuleList()
    for index, W in enumerate(weights):
        block = nn.Module()
        if W is not None:
            block.up = nn.Linear(*W.shape, bias=False, dtype=torch.float64)
            block.up.weight.data.copy_(W.T)
            projections.append(
                Projection(f"layers.{index}.up", index, "up", "mlp_in", W.shape[0], W.shape[1], False, False)
            )
        blocks.append(block)
    model.layers = blocks
    return model, Decoder(LLAMA, tuple(f"layers.{i}" for i in range(len(weights))), tuple(projections))


def decaying(d_out: int, seed: int) -> torch.Tensor:
    """Return a random matrix whose singular values fall as those of real projections do."""
    U, _ = torch.linalg.qr(noise(WIDTH, WIDTH, seed=seed))
    return U @ torch.diag(0.85 ** torch.arange(WIDTH, dtype=torch.float64)) @ noise(WIDTH, d_out, seed=seed + 1000)


def statistics(seeds: Sequence[int], d_out: int) -> MomentStore:
    """Return moments of inputs and gradients, one seed per block."""
    store = MomentStore()
    for block, seed in enumerate(seeds):
        x = noise(200, WIDTH, seed=seed) * torch.linspace(0.2, 2, WIDTH, dtype=torch.float64)
        g = noise(200, d_out, seed=seed + 50)
        store.put(
            block,
            {
                "mlp_in": Moments(tokens=200, gram=(x.T @ x).float()),
                f"layers.{block}.up": Moments(tokens=200, gram=(x.T @ x).float(), gradient=(g.T @ g).float()),
            },
        )
    return store


def gradients(seeds: Sequence[int], d_out: int) -> Loss:
    """Weigh as the planner does; a projection's own moments hold its gradient's, its input's those of the input."""
    return Loss(moments=statistics(seeds, d_out))


@pytest.mark.parametrize("d_out", [12, 24, 40])
def test_identical_layers_share_at_every_ratio(d_out: int) -> None:
    W = decaying(d_out, seed=1)
    model, decoder = stack([W, W, W])
    (role,) = study_sharing(model, decoder, gradients([7, 7, 7], d_out)).roles
    for summary in role.summaries:
        assert summary.pairs == summary.pairs_paying == 3
        assert summary.neighbours == summary.neighbours_paying == 2
        assert summary.best_gain is not None
        assert summary.best_gain > 0
    assert role.lowest_paying_ratio == RATIOS[0]


def explicit_losses(members: Sequence[Member], most: int) -> np.ndarray[Any, Any]:
    """Return the loss at ranks 1, 2, ..., from the factors themselves."""
    found = truncate(members)
    return np.array(
        [
            sum(loss_of(m, m.W - found.basis[:, :k] @ C) for m, C in zip(members, found.coefficients(k), strict=True))
            for k in range(1, most + 1)
        ]
    )


def stored(d_in: int, outputs: int, most: int) -> np.ndarray[Any, Any]:
    k = np.arange(1, most + 1)
    return k * (d_in + outputs) - k**2


@pytest.mark.parametrize("d_out", [10, 40])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.8])
def test_quotients_equal_brute_force(d_out: int, ratio: float) -> None:
    model, decoder = stack([decaying(d_out, seed=3), noise(WIDTH, d_out, seed=4)])
    weighting = gradients([8, 9], d_out)
    study = study_sharing(model, decoder, weighting, ratios=[ratio])
    (role,) = study.roles
    members = weighting.problem(model, decoder.projections)

    most = min(WIDTH, 2 * d_out)
    costs = stored(WIDTH, 2 * d_out, most)
    rank = int(np.flatnonzero(costs <= float((1 - Fraction(str(ratio))) * WIDTH * 2 * d_out))[-1])
    shared = explicit_losses(members, most)[rank]
    assert role.shared_losses[0][0][1] == pytest.approx(shared, rel=1e-6)

    alone = min(WIDTH, d_out)
    x, y = stored(WIDTH, d_out, alone), [explicit_losses([member], alone) for member in members]
    both_cost, both_loss = np.add.outer(x, x).ravel(), np.add.outer(*y).ravel()
    cost = costs[rank]
    left, right = both_cost <= cost, both_cost > cost
    share = (cost - both_cost[left][:, None]) / (both_cost[right][None] - both_cost[left][:, None])
    between = (1 - share) * both_loss[left][:, None] + share * both_loss[right][None]
    private = min(between.min(), both_loss[left].min())
    assert role.quotients[0][0][1] == pytest.approx(shared / private, rel=1e-6)
    assert role.quotients[0][1][0] == role.quotients[0][0][1]
    assert role.quotients[0][0][0] is None
    # What two ranks can really have is never better than what the study compares with.
    assert both_loss[left].min() >= private * (1 - 1e-9)


def test_unrelated_layers_lose_by_sharing() -> None:
    model, decoder = stack([decaying(WIDTH, seed=5), decaying(WIDTH, seed=6)])
    (role,) = study_sharing(model, decoder, gradients([8, 9], WIDTH), ratios=[0.3, 0.5]).roles
    assert role.lowest_paying_ratio is None
    for summary in role.summaries:
        assert summary.pairs_paying == 0
        assert summary.best_pair == (0, 1)
        assert summary.best_gain is not None
        assert summary.best_gain < 0


def plain_study(weights: Sequence[torch.Tensor | None], **settings: Any) -> SharingStudy:
    model, decoder = stack(weights)
    return study_sharing(model, decoder, Unweighted(), **settings)


def test_only_equal_shapes_are_paired_and_neighbours_are_adjacent_blocks() -> None:
    wide = [noise(WIDTH, 16, seed=i) for i in range(4)]
    narrow = [noise(WIDTH, 8, seed=i) for i in range(2)]
    events: list[Progress] = []
    study = plain_study(
        [wide[0], narrow[0], wide[1], wide[2], None, wide[3], narrow[1]], ratios=[0.5], progress=events.append
    )
    assert [(role.name, role.layers) for role in study.roles] == [
        ("up 24 x 16", (0, 2, 3, 5)),
        ("up 24 x 8", (1, 6)),
    ]
    first, second = (role.summaries[0] for role in study.roles)
    assert (first.pairs, first.neighbours) == (6, 1)
    assert (second.pairs, second.neighbours, second.best_neighbour, second.median_neighbour) == (1, 0, None, None)
    assert [(event.done, event.total) for event in events] == [(i, 7) for i in range(1, 8)]


def test_distant_pairs_are_left_out() -> None:
    weights = [decaying(24, seed) for seed in range(5)]
    whole, near = plain_study(weights), plain_study(weights, distance=2)
    for all_pairs, few in zip(whole.roles[0].quotients, near.roles[0].quotients, strict=True):
        for i, j in np.ndindex(5, 5):
            assert few[i][j] == (all_pairs[i][j] if abs(i - j) <= 2 else None)
    assert near.roles[0].summaries[0].pairs == 4 + 3
    assert near.roles[0].summaries[0].neighbours == 4


def test_matrices_that_lose_nothing_are_equal() -> None:
    (role,) = plain_study([torch.zeros(WIDTH, 16), torch.zeros(WIDTH, 16)]).roles
    assert {matrix[0][1] for matrix in role.quotients} == {1.0}
    one = torch.outer(noise(WIDTH, seed=1), noise(16, seed=2))
    (role,) = plain_study([one, one], ratios=[0.2]).roles
    assert role.quotients[0][0][1] == 1.0
    assert role.lowest_paying_ratio is None


def test_a_ratio_without_room_for_rank_1_is_not_compared() -> None:
    (role,) = plain_study([noise(WIDTH, 1, seed=1), noise(WIDTH, 1, seed=2)], ratios=[0.1, 0.9]).roles
    assert role.quotients[1][0][1] is None
    assert role.summaries[1].pairs == 0
    assert role.summaries[1].best_pair is None


def test_ratios_are_sorted_and_found() -> None:
    study = plain_study([noise(WIDTH, 8, seed=1), noise(WIDTH, 8, seed=2)], ratios=[0.5, 0.3, 0.5])
    assert study.ratios == (0.3, 0.5)
    assert study.position(0.5) == 1
    with pytest.raises(PlanError, match=r"0\.4 was not studied: choose from 0\.3, 0\.5"):
        study.position(0.4)


def test_a_study_survives_json() -> None:
    study = plain_study([noise(WIDTH, 8, seed=i) for i in range(3)])
    assert SharingStudy.model_validate_json(study.model_dump_json()) == study


@pytest.mark.parametrize("ratios", [[], [0.0], [1.0], [0.3, float("nan")]])
def test_bad_ratios(ratios: list[float]) -> None:
    with pytest.raises(PlanError, match="above 0 and below 1"):
        plain_study([noise(WIDTH, 8, seed=1), noise(WIDTH, 8, seed=2)], ratios=ratios)


def test_no_pair_to_study() -> None:
    with pytest.raises(ModelError, match="no pair"):
        plain_study([noise(WIDTH, 8, seed=1), noise(WIDTH, 9, seed=2)])


def test_damaged_weights() -> None:
    broken = noise(WIDTH, 8, seed=1)
    broken[0, 0] = float("nan")
    with pytest.raises(NumericalError):
        plain_study([broken, noise(WIDTH, 8, seed=2)])
