"""A table as data: what it says is decided once, how it looks is left to the terminal, HTML and Markdown."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: What stands above it; empty where the cells speak for themselves.
        align: ``"left"`` for words, which may be broken into lines; ``"right"`` for numbers, which may not.
    """

    name: str
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Table:
    """A table.

    Cells are plain text in ASCII as far as what they quote is: ``1.136 x``, ``-18.0 %``, ``0.5 +- 0.1``, ``-`` for
    nothing. Minus signs and the like are the renderer's business.

    Attributes:
        title: What it shows.
        columns: Its columns; the first one holds the names of the rows.
        rows: The cells, as many in each row as there are columns.
        notes: What a reader has to know, one sentence each, below it.
        footer: Totals, one cell per column; empty where there are none.
        sections: Indices of the rows before which a line is drawn.

    Raises:
        ValueError: A row or the footer has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    footer: tuple[str, ...] = ()
    sections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in (*self.rows, *([self.footer] if self.footer else [])):
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in a row of {len(self.columns)} columns")

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the table with every text in it changed: title, cells, totals and notes."""
        return replace(
            self,
            title=change(self.title),
            rows=tuple(tuple(map(change, row)) for row in self.rows),
            notes=tuple(map(change, self.notes)),
            footer=tuple(map(change, self.footer)),
        )


@dataclass(frozen=True)
class Answer:
    """The sentence that a reader looks for first.

    Attributes:
        sentence: The answer.
        good: Whether it is what was hoped for; None: neither.
    """

    sentence: str
    good: bool | None = None


Block = Table | Answer | str
"""A part of what is shown; text is a sentence of its own."""


def columns(*names: str, words: int = 1) -> tuple[Column, ...]:
    """Return columns by name: the first ``words`` of them for words, the others for numbers."""
    return tuple(Column(name, "left" if index < words else "right") for index, name in enumerate(names))


def escaped(text: str, keep: str = "") -> str:
    """Return a text with its control characters as escapes, so that it cannot confuse a terminal or a page.

    Args:
        text: Any text, such as one that a model wrote.
        keep: Characters that stay as they are.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
