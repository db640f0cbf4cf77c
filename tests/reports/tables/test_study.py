"""What a person reads of a sharing study."""

from io import StringIO

from rich.console import Console

from basis_sharing.reports.tables.study import conclusion, study_table
from basis_sharing.reports.terminal import printable
from samples import MIXED_STUDY, role_study, sharing_study


def test_the_conclusion_says_where_and_where_not() -> None:
    sentence = conclusion(MIXED_STUDY, 0.4)
    assert "at ratio 0.4 sharing loses less for 1 of 1 pairs of q, at best 20.0 % less (q, layers 0 and 1)" in sentence
    assert "for k only at other ratios" in sentence
    assert "for v, o at none of the ratios 0.2 to 0.4" in sentence
    assert "not measured on text" in sentence
    assert sentence.count(". ") == 0


def test_the_conclusion_where_nothing_pays() -> None:
    assert "no pair of layers gains" in conclusion(sharing_study(role_study("q", 1.2, 1.1)), 0.4)
    assert "at ratio 0.4 sharing loses more for every pair of every role; for q only at" in conclusion(
        sharing_study(role_study("q", 0.9, 1.1)), 0.4
    )


def test_the_table_shows_every_role_whole() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(printable(study_table(MIXED_STUDY, "a model", 0.4)))
    shown = console.export_text()
    assert "…" not in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if " x " in line}
    assert rows["q"][-2:] == ["%", "0.4"]
    assert rows["v"][-1] == "never"
    assert "+20.0" in rows["q"]
    assert "-10.0" in rows["k"]
