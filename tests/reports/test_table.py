"""A table as data: light, and whole."""

import subprocess
import sys

from basis_sharing.reports.table import Column, Table, columns, escaped


def test_names_become_columns_of_words_and_numbers() -> None:
    assert columns("a", "b", "c", words=2) == (Column("a", "left"), Column("b", "left"), Column("c"))


def test_every_text_of_a_table_can_be_changed() -> None:
    table = Table("a", columns("a", "b"), (("a", "b"),), ("c",), footer=("d", ""))
    changed = Table("A", columns("a", "b"), (("A", "B"),), ("C",), footer=("D", ""))
    assert table.mapped(str.upper) == changed


def test_control_characters_become_escapes() -> None:
    assert escaped("a\x1b[31m\n\u4e2d") == "a\\x1b[31m\\n\u4e2d"
    assert escaped("a\nb\t", keep="\n") == "a\nb\\t"


def test_the_card_needs_no_renderer_of_pages_or_terminals() -> None:
    code = (
        "import sys, basis_sharing.reports.card\n"
        "print([name for name in ('rich', 'jinja2', 'matplotlib', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
