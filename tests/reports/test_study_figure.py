"""The picture of a sharing study."""

from pathlib import Path

import pytest

from basis_sharing.errors import PlanError
from basis_sharing.reports.study_figure import draw_study
from basis_sharing.treatments.factors.study import SharingStudy
from samples import MIXED_STUDY, role_study, sharing_study


@pytest.mark.parametrize(
    "found",
    [
        MIXED_STUDY,
        sharing_study(role_study("q", None, None)),
        sharing_study(role_study("q", 1.0, 1.0)),
        sharing_study(*(role_study(f"r{i}", 1e-9, 1e9) for i in range(11))),
    ],
    ids=["mixed", "nothing", "equal", "extreme"],
)
def test_pictures_are_drawn(found: SharingStudy, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    draw_study(found, picture, title="a model with a $ and an _ in its name", ratio=0.4)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_a_ratio_that_was_not_studied(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="was not studied"):
        draw_study(MIXED_STUDY, tmp_path / "picture.png", title="a model", ratio=0.3)
