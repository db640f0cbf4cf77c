"""The best division of a cost among groups."""

import numpy as np
import pytest

from basis_sharing.costs.parameters import Parameters
from basis_sharing.models.decoder import describe
from basis_sharing.recipe.planning import Planning
from basis_sharing.treatments.base import Search
from basis_sharing.treatments.factors.candidates import find_groups
from basis_sharing.treatments.factors.separate import separate_losses
from measured import loss_weighting
from pico import PICO


def test_separate_losses_are_those_of_the_best_split_of_a_cost() -> None:
    """Never above any split into ranks, and exact at the ends."""
    model = PICO["llama"]()
    decoder = describe(model)
    planning = Planning(across_roles=False, across_depth=False)
    groups = find_groups(Search(model, decoder, loss_weighting(model, decoder), Parameters(), planning))
    private = {group.scope[0].name: group for group in groups}
    pieces = [private[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1)]
    (x, y), (u, w) = ((piece.costs, piece.losses[1:]) for piece in pieces)
    costs, lost = np.array([(x[i] + u[j], y[i] + w[j]) for i in range(len(x)) for j in range(len(u))]).T
    assert (separate_losses(pieces, costs) <= lost + 1e-12).all()
    least = x[0] + u[0]
    assert separate_losses(pieces, np.array([least]))[0] == pytest.approx(y[0] + w[0])
    assert separate_losses(pieces, np.array([least - 1.0]))[0] == np.inf
    assert separate_losses(pieces, np.array([1e9]))[0] == pytest.approx(0, abs=1e-12)
