"""How long the windows of an evaluation are."""

import pytest

from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.perplexity import window_length
from pico import PICO


def test_window_length() -> None:
    config = PICO["llama"]().config
    assert window_length(config, None) == 256
    assert window_length(config, 100) == 100
    with pytest.raises(RecipeError, match="more than the 256 tokens"):
        window_length(config, 257)
    config.max_position_embeddings = 8192
    assert window_length(config, None) == 2048
