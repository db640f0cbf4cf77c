"""Segments of text: where they are cut, and when there are too few."""

import pytest
import torch

from basis_sharing.errors import RecipeError
from basis_sharing.repair import segments


def test_every_segment_starts_with_the_token_that_windows_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT", 8)
    text = torch.arange(16 * 21).view(16, 21)
    windows = torch.cat([torch.full((16, 1), 999), text], dim=1)
    pieces = segments.cut_segments(windows, seed=0, bos=True)
    assert pieces.shape == (48, 8)
    assert (pieces[:, 0] == 999).all()
    assert sorted(pieces[:, 1:].flatten().tolist()) == list(range(16 * 21))


def test_fewer_tokens_than_basis_vectors_are_refused() -> None:
    ids = torch.zeros(16, 3, dtype=torch.int64)
    segments.check_text(ids, bos=False, rank=42)
    with pytest.raises(RecipeError, match="42 tokens cannot determine coefficients for 43 basis vectors"):
        segments.check_text(ids, bos=False, rank=43)
