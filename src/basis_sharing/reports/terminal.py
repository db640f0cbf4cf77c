"""Tables and sentences for the terminal, drawn by rich."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from basis_sharing.reports.table import Answer, Block, Column, Table, escaped

_STYLES = {True: "bold green", False: "bold red", None: "bold"}
_NARROWEST_HEAD, _NARROWEST_WORDS = 12, 10


def printable(*blocks: Block) -> RenderableType:
    """Return tables, sentences and answers as a renderable of rich, one below the other.

    Control characters are shown as escapes, so that no cell can change the terminal's state.
    """
    drawn: list[RenderableType] = []
    for place, block in enumerate(blocks):
        if place and isinstance(block, Table) and not _ends_with_a_gap(blocks[place - 1]):
            drawn.append("")
        drawn += _parts(block)
    return Group(*drawn)


def _ends_with_a_gap(block: Block) -> bool:
    """Return whether an empty line follows a block, as after a table without notes and after an answer."""
    return isinstance(block, Answer) or (isinstance(block, Table) and not block.notes)


def _parts(block: Block) -> Iterator[RenderableType]:
    if isinstance(block, Answer):
        yield Padding(Text(escaped(block.sentence), style=_STYLES[block.good]), (1, 2), expand=False)
    elif isinstance(block, str):
        yield _sentence(block)
    else:
        yield Text(escaped(block.title), style="italic")
        yield _Drawn(block)
        yield from map(_sentence, block.notes)


def _sentence(text: str) -> RenderableType:
    return Padding(Text(escaped(text, keep="\n")), (0, 0, 0, 2), expand=False)


@dataclass(frozen=True)
class _Drawn:
    """A table that adapts to the width of the console."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield _drawn(self.table, options.max_width)


def _drawn(table: Table, available: int) -> RichTable:
    heads = [_head(column, _lines(table, index)) for index, column in enumerate(table.columns)]
    widths, tight = _widths(table, heads, available)
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1) if tight else (0, 1),
        show_footer=bool(table.footer),
        show_header=any(heads),
    )
    totals = table.footer or ("",) * len(heads)
    for column, head, total, width in zip(table.columns, heads, totals, widths, strict=True):
        cells = {"header": Text(head), "footer": Text(escaped(total))}
        drawn.add_column(**cells, justify=column.align, overflow="fold", width=width)
    for number, row in enumerate(table.rows):
        drawn.add_row(*(Text(escaped(cell, keep="\n")) for cell in row), end_section=number + 1 in table.sections)
    return drawn


def _lines(table: Table, index: int) -> list[str]:
    """Return the lines of all cells in a column."""
    cells = (row[index] for row in (*table.rows, table.footer) if row)
    return [line for cell in cells for line in escaped(cell, keep="\n").split("\n")]


def _head(column: Column, lines: Sequence[str]) -> str:
    """Return the name of a column, wrapped so that it does not make a column of numbers unnecessarily wide."""
    name = escaped(column.name)
    if column.align == "left":
        return name
    width = max([_NARROWEST_HEAD, *map(len, lines), *map(len, name.split())])
    return "\n".join(textwrap.wrap(name, width))


def _widths(table: Table, heads: Sequence[str], available: int) -> tuple[list[int], bool]:
    """Return the widths of the columns, and whether they need narrow padding.

    If there is not enough space, the widest column is narrowed first; words inside a number are broken last.
    """
    widths, least = [], []
    for index, (column, head) in enumerate(zip(table.columns, heads, strict=True)):
        lines = [*head.split("\n"), *_lines(table, index)]
        words = [Text(word).cell_len for line in [*lines, column.name] for word in line.split()]
        widths.append(max(Text(line).cell_len for line in lines))
        longest = max(words, default=0)
        least.append(longest if column.align == "right" else min(longest, _NARROWEST_WORDS))
    count = len(widths)
    if sum(widths) + 3 * count + 1 <= available:
        return widths, False
    room = available - 2 * count - 1
    for floors in (least, [1] * count):
        while sum(widths) > room and (wide := [i for i in range(count) if widths[i] > floors[i]]):
            widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths, True
