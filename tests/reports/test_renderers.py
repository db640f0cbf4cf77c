"""Every table of every subject in all three renderings: no cell is lost, and nothing in a cell becomes an order."""

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from basis_sharing.reports.html import table_html
from basis_sharing.reports.markdown import markdown
from basis_sharing.reports.table import Block, Column, Table, escaped
from basis_sharing.reports.tables.benchmark import benchmark_tables
from basis_sharing.reports.tables.comparison import comparison_summary
from basis_sharing.reports.tables.compression import compression_summary, origin_table, settings_table
from basis_sharing.reports.tables.estimate import estimate_table
from basis_sharing.reports.tables.forecast import forecast_tables
from basis_sharing.reports.tables.inspection import inspection_table
from basis_sharing.reports.tables.perplexity import perplexity_table
from basis_sharing.reports.tables.plans import plan_difference
from basis_sharing.reports.tables.recovery import recovery_table
from basis_sharing.reports.tables.rollout import rollout_summary
from basis_sharing.reports.tables.study import study_table
from basis_sharing.reports.tables.tasks import scores_pairs_table, scores_table
from basis_sharing.reports.terminal import printable
from basis_sharing.reports.typography import typographic
from samples import (
    MIXED_STUDY,
    benchmark,
    comparison,
    compression,
    estimate,
    forecast,
    perplexity,
    plan,
    recovery,
    role_row,
    rollout,
    score,
    tasks,
)


def every_subject() -> dict[str, list[Block]]:
    """Return everything that is shown of every kind of result, by subject."""
    before, after = tasks(score("one", 0.25, 0.03, 0.5), score("two", 0.75, 0.04)), tasks(score("one", 0.3, None))
    pairs = scores_pairs_table([before], [after])
    assert pairs is not None
    rows = [role_row("q", 10 * 2**20), role_row("embeddings", 60 * 2**20, False)]
    return {
        "compression": compression_summary(compression()),
        "origin": [origin_table(compression()), settings_table(compression())],
        "perplexity": [perplexity_table("m", [perplexity(2.0), perplexity(3.0, bits_per_byte=None)])],
        "comparison": comparison_summary(comparison()),
        "benchmark": [*benchmark_tables(benchmark(device=2**22))],
        "tasks": [scores_table(before), pairs],
        "rollout": rollout_summary(rollout()),
        "recovery": [recovery_table(recovery())],
        "forecast": forecast_tables(forecast()),
        "plans": plan_difference(plan(), plan(rank=6), ("a.json", "b.json")),
        "study": [study_table(MIXED_STUDY, "a model", 0.4)],
        "estimate": [estimate_table(estimate(), Path())],
        "inspection": [inspection_table("a model", "llama", rows)],
    }


SUBJECTS = {name: [block for block in shown if isinstance(block, Table)] for name, shown in every_subject().items()}
TABLES = [pytest.param(table, id=f"{name}: {table.title[:30]}") for name, shown in SUBJECTS.items() for table in shown]


class Cells(HTMLParser):
    """The texts of the elements of a table in HTML."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.tags: set[str] = set()
        self._text: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th", "p"}:
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "p"} and self._text is not None:
            (self.notes if tag == "p" else self.rows[-1]).append("".join(self._text))
            self._text = None


def markdown_rows(text: str) -> list[list[str]]:
    """Return the cells that a reader of Markdown sees, head and body."""
    rows = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[plain(cell) for cell in row] for row in (rows[0], *rows[2:])]


def plain(cell: str) -> str:
    return re.sub(r"\\([\\|*`])", r"\1", cell.strip()).replace("<br>", "\n").replace("&lt;", "<")


def terminal(table: Table, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(printable(table))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def lines_of(table: Table) -> list[str]:
    cells = [cell for row in (*table.rows, table.footer) for cell in row]
    return [escaped(line).strip() for cell in cells for line in cell.split("\n")]


def held_by_all(table: Table) -> None:
    """Check that all three renderings hold every cell and every note of a table."""
    names, totals = tuple(column.name for column in table.columns), [table.footer] if table.footer else []
    body = [[escaped(cell, keep="\n") for cell in row] for row in (*table.rows, *totals)]

    shown = terminal(table, 5000)
    for text in [*lines_of(table), *table.notes, *(word for name in names for word in name.split())]:
        assert text in shown

    page = Cells(table_html(table))
    head = [[typographic(name) for name in names]] if any(names) else []
    aligned = [[typographic(c, column.align) for c, column in zip(row, table.columns, strict=True)] for row in body]
    assert page.rows == [*head, *aligned]
    assert page.notes == [typographic(note) for note in table.notes]

    text = markdown(table)
    assert markdown_rows(text) == [list(names), *([cell.strip() for cell in row] for row in body)]
    for note in table.notes:
        assert note in plain(text)


@pytest.mark.parametrize("table", TABLES)
def test_no_cell_is_lost(table: Table) -> None:
    held_by_all(table)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("table", TABLES)
def test_a_narrow_terminal_breaks_cells_but_loses_none(table: Table, width: int) -> None:
    shown = terminal(table, width)
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert "\u2026" not in shown
    seen = sorted("".join(shown.split()))
    for text in lines_of(table):
        assert not set(text.replace(" ", "")) - set(seen)
    count = sum(len("".join(text.split())) for text in [*lines_of(table), *table.notes, table.title])
    count += sum(len("".join(column.name.split())) for column in table.columns)
    assert len([sign for sign in seen if sign != "\u2500"]) == count


TEXT = st.text(st.sampled_from("ab1 -x.|\\<>&*`\"'\n\t\x1b\x07[]/"), max_size=8).map(
    lambda text: "\n".join(line.strip() for line in text.split("\n"))
)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_text_confuses_a_renderer(rows: list[tuple[str, str, str]], footer: bool) -> None:
    columns = (Column("a", "left"), Column("b"), Column("c", "left"))
    table = Table("t", columns, tuple(rows), footer=("x", "-", "") if footer else ())
    shown = terminal(table, 5000)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert all(line in shown for line in lines_of(table))
    page = Cells(table_html(table))
    assert page.tags <= {"div", "table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th"}
    assert len(page.rows) == 1 + len(rows) + footer
    found = [[cell.strip() for cell in row] for row in markdown_rows(markdown(table))[1:]]
    body = [*rows, *([table.footer] if footer else [])]
    assert found == [[escaped(cell, keep="\n").strip() for cell in row] for row in body]


def test_a_row_has_a_cell_for_every_column() -> None:
    with pytest.raises(ValueError, match="2 cells in a row of 1 columns"):
        Table("t", (Column("a"),), (("1", "2"),))
    with pytest.raises(ValueError, match="1 cells in a row of 2 columns"):
        Table("t", (Column("a"), Column("b")), (), footer=("1",))
