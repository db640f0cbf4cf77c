"""Tables in HTML."""

from basis_sharing.reports.html import table_html
from basis_sharing.reports.table import Column, Table

TABLE = Table(
    "A <table>",
    (Column("name", "left"), Column("value"), Column("words", "left")),
    (("one", "-1.5 x", "-1 <b>\x01"), ("two", "-", "a\nb")),
    ("1.5 x as much.",),
    footer=("total", "3", ""),
    sections=(1,),
)


def test_a_table_is_accessible_and_escaped() -> None:
    page = table_html(TABLE)
    assert 'role="region" aria-label="A &lt;table&gt;"' in page
    assert "<caption>A &lt;table&gt;</caption>" in page
    assert '<th scope="col" class="words">name</th><th scope="col">value</th>' in page
    assert (
        '<th scope="row" class="words">one</th><td>\u22121.5 \u00d7</td><td class="words">-1 &lt;b&gt;\\x01</td>'
        in page
    )
    assert '<td>\u2013</td><td class="words">a\nb</td>' in page
    assert page.count("<tbody>") == page.count("</tbody>") == 2
    assert '<tfoot>\n<tr><th scope="row" class="words">total</th>' in page
    assert '<p class="note">1.5 \u00d7 as much.</p>' in page


def test_columns_without_names_have_no_head() -> None:
    page = table_html(Table("t", (Column("", "left"), Column("")), (("a", "1"),)))
    assert "<thead>" not in page
