"""Tables in Markdown."""

from basis_sharing.reports.markdown import markdown
from basis_sharing.reports.table import Table, columns

TABLE = Table("A table", columns("", "size"), (("one|two", "-18.0 %"),), ("A *note*.",), footer=("total", "1"))


def test_a_table_with_its_totals_and_notes() -> None:
    assert markdown(TABLE) == (
        "**A table**\n\n|  | size |\n|---|---:|\n| one\\|two | -18.0 % |\n| total | 1 |\n\nA \\*note\\*."
    )


def test_the_title_can_be_left_out() -> None:
    assert markdown(TABLE, title=False).startswith("|  | size |")


def test_a_cell_stays_in_its_line_and_is_no_html() -> None:
    table = Table("t", columns("a"), (("<b>\nx",),))
    assert "| &lt;b><br>x |" in markdown(table)
