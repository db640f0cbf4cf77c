"""Tables in a terminal."""

from io import StringIO

from rich.console import Console

from basis_sharing.reports.table import Answer, Block, Table, columns
from basis_sharing.reports.terminal import printable


def shown(*blocks: Block, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(printable(*blocks))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


TABLE = Table("A table", columns("name", "lowest ratio that pays"), (("one", "0.4"), ("two", "-")), ("A note.",))


def test_a_table_with_its_notes() -> None:
    rule = "\u2500" * 21
    assert shown(TABLE) == (
        f"A table\n\n         lowest ratio\n  name      that pays\n {rule}\n  one             0.4\n"
        "  two               -\n\n  A note."
    )


def test_one_empty_line_between_tables() -> None:
    assert "  A note.\n\nA table" in shown(TABLE, TABLE)
    bare = Table("Bare", columns("a"), (("1",),))
    assert "\n  1\n\nBare" in shown(bare, bare)


def test_sentences_are_indented_in_every_line() -> None:
    assert shown("words " * 20, width=50).splitlines()[1].startswith("  words")
    assert shown("A  one\nB  two") == "  A  one\n  B  two"


def test_the_answer_stands_apart() -> None:
    assert shown("before", Answer("Yes.", True)) == "  before\n\n  Yes.\n"


def test_sections_are_divided() -> None:
    table = Table("t", columns("a"), (("1",), ("2",), ("3",)), sections=(1,))
    lines = [line.strip() for line in shown(table).splitlines()]
    assert lines[-4:] == ["1", "", "2", "3"]


def test_columns_of_words_are_broken_before_numbers() -> None:
    table = Table("t", columns("text", "value"), (("a rather long name of a text", "-0.10000 to +0.30000"),))
    assert "-0.10000 to +0.30000" in shown(table, width=45)
    assert "+0.30000" in shown(table, width=30)
    assert "\u2026" not in shown(table, width=20)
