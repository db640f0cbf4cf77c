"""Tables as Markdown, for the model card."""

import re

from basis_sharing.reports.table import Table, escaped

_SPECIAL = re.compile(r"[\\|<*`]")


def markdown(table: Table, *, title: bool = True) -> str:
    """Return a table in the Markdown of GitHub and of the Hugging Face hub.

    Args:
        table: The table; its totals become the last row.
        title: Whether the title is written above it in bold.
    """
    lines = [f"**{_cell(table.title)}**", ""] if title else []
    lines.append(_row([column.name for column in table.columns]))
    lines.append("|" + "|".join("---" if column.align == "left" else "---:" for column in table.columns) + "|")
    lines += [_row(row) for row in (*table.rows, table.footer) if row]
    for note in table.notes:
        lines += ["", _cell(note)]
    return "\n".join(lines)


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Return a text in one line, escaped so that Markdown shows it literally."""
    plain = _SPECIAL.sub(lambda match: "&lt;" if match[0] == "<" else f"\\{match[0]}", escaped(text, keep="\n"))
    return plain.replace("\n", "<br>")
