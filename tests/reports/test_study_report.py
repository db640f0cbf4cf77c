"""What a person reads of a sharing study."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from basis_sharing.errors import PlanError
from basis_sharing.reports.study_figure import draw_study
from basis_sharing.reports.study_table import conclusion, study_table
from basis_sharing.treatments.factors.study import RoleAtRatio, RoleStudy, SharingStudy


def role(name: str, *quotients: float | None) -> RoleStudy:
    """Return a study of two layers from one quotient per ratio."""
    matrices = tuple(((None, q), (q, None)) for q in quotients)
    summaries = tuple(
        RoleAtRatio(
            ratio=ratio,
            pairs=int(q is not None),
            pairs_paying=int(q is not None and q < 1),
            neighbours=int(q is not None),
            neighbours_paying=int(q is not None and q < 1),
            best_pair=None if q is None else (0, 1),
            best_gain=None if q is None else 1 - q,
            best_neighbour=q,
            median_neighbour=q,
        )
        for ratio, q in zip((0.2, 0.4), quotients, strict=True)
    )
    paying = next((s.ratio for s in summaries if s.pairs_paying), None)
    return RoleStudy(
        name=name,
        role=name,
        slot=f"x.{name}",
        d_in=8,
        d_out=8,
        layers=(0, 1),
        quotients=matrices,
        shared_losses=matrices,
        summaries=summaries,
        lowest_paying_ratio=paying,
    )


def study(*roles: RoleStudy) -> SharingStudy:
    return SharingStudy(ratios=(0.2, 0.4), roles=roles)


MIXED = study(role("q", 1.2, 0.8), role("k", 0.9, 1.1), role("v", 1.5, 1.4), role("o", 1.5, None))


def test_the_conclusion_says_where_and_where_not() -> None:
    sentence = conclusion(MIXED, 0.4)
    assert "at ratio 0.4 sharing loses less for 1 of 1 pairs of q, at best 20.0 % less (q, layers 0 and 1)" in sentence
    assert "for k only at other ratios" in sentence
    assert "for v, o at none of the ratios 0.2 to 0.4" in sentence
    assert "not measured on text" in sentence
    assert sentence.count(". ") == 0


def test_the_conclusion_where_nothing_pays() -> None:
    assert "no pair of layers gains" in conclusion(study(role("q", 1.2, 1.1)), 0.4)
    assert "at ratio 0.4 sharing loses more for every pair of every role; for q only at" in conclusion(
        study(role("q", 0.9, 1.1)), 0.4
    )


def test_the_table_shows_every_role_whole() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(study_table(MIXED, "a model", 0.4))
    shown = console.export_text()
    assert "…" not in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if " x " in line}
    assert rows["q"][-2:] == ["%", "0.4"]
    assert rows["v"][-1] == "never"
    assert "+20.0" in rows["q"]
    assert "-10.0" in rows["k"]


@pytest.mark.parametrize(
    "found",
    [
        MIXED,
        study(role("q", None, None)),
        study(role("q", 1.0, 1.0)),
        study(*(role(f"r{i}", 1e-9, 1e9) for i in range(11))),
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
        draw_study(MIXED, tmp_path / "picture.png", title="a model", ratio=0.3)
