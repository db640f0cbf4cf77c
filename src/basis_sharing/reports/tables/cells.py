"""Formatting of numbers in the cells of all tables."""

from basis_sharing.reports.table import escaped
from basis_sharing.results.comparison import Interval
from basis_sharing.results.words import amount_of_bytes

NOTHING = "-"


def number(value: float | None, form: str) -> str:
    """Return a number in a format such as ``",.4f"``; ``"-"`` for None."""
    return NOTHING if value is None else f"{value:{form}}"


def times(value: float | None, digits: int = 2) -> str:
    """Return a multiple, e.g. ``"1.14 x"``."""
    return NOTHING if value is None else f"{value:,.{digits}f} x"


def quotient(after: float | None, before: float | None, digits: int = 4) -> str:
    """Return a value as a multiple of an earlier one, e.g. ``"1.1360 x"``."""
    return times(after / before, digits) if before and after is not None else NOTHING


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage, e.g. ``"87.5 %"``."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def points(fraction: float | None, error: float | None, *, digits: int = 1, sign: str = "") -> str:
    """Return an accuracy, or a difference of two with its sign, in points with its standard error.

    Args:
        fraction: The value, 1 for 100 points; None: there is none.
        error: Its standard error in the same unit; None: unknown.
        digits: Digits after the point.
        sign: ``"+"`` for a difference.
    """
    if fraction is None:
        return NOTHING
    shown = f"{100 * fraction:{sign}.{digits}f}"
    return shown if error is None else f"{shown} +- {100 * error:.{digits}f}"


def size(count: int | None) -> str:
    """Return a number of bytes in a suitable unit, e.g. ``"541.3 MiB"``."""
    return NOTHING if count is None else amount_of_bytes(count)


def interval(found: Interval | None, form: str, unit: str = "") -> str:
    """Return a confidence interval, e.g. ``"0.9000 to 1.2000"``.

    Args:
        found: The interval; None: a single window has none.
        form: Format of its ends, such as ``".4f"``.
        unit: Text after the interval; ``" %"``: its ends are fractions, shown as percentages.
    """
    if found is None:
        return "one window"
    scale = 100 if unit == " %" else 1
    return f"{scale * found.low:{form}} to {scale * found.high:{form}}{unit}"


def quoted(text: str) -> str:
    """Return a text that a model read or generated, in one line with visible control characters and spaces."""
    shown = escaped(text)
    return shown if shown.strip() else f'"{shown}"'


def noted(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the notes of a result, each prefixed with ``"note: "``."""
    return tuple(f"note: {note}" for note in notes)
