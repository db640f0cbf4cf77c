"""Parsing of numbers as users write them: fractions as percentages, amounts with units."""

import re
from fractions import Fraction


def fraction(value: object) -> object:
    """Return a fraction that may be written as a percentage, e.g. ``"5%"``, as a number; other types unchanged.

    Raises:
        ValueError: The text is neither a number nor a percentage.
    """
    if not isinstance(value, str):
        return value
    number = value.strip()
    try:
        return float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{value!r} is neither a fraction nor a percentage: write e.g. 0.05 or 5%.") from None


def amount(value: object) -> object:
    """Return an amount that may be written with a unit, ``"90M"`` or ``"1.5GiB"``, as a number; other types unchanged.

    Raises:
        ValueError: The text is no amount.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *([kKMGT]?)(i?)B?", value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not an amount: write a number such as 90000000, 90M, 1.5G or 512MiB.")
    power = " kMGT".index(match[2].replace("K", "k") or " ")
    return int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)


_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def duration(value: object) -> object:
    """Return a duration that is written with its unit, e.g. ``"25ms"``, in seconds; other types unchanged.

    Raises:
        ValueError: The text is no duration with a unit.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *(s|ms|us)", value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no time: write it with its unit, e.g. 25ms or 0.2s.")
    return float(match[1]) * _UNITS[match[2]]


def multiple(value: object) -> object:
    """Return a multiple that may be written as ``"1.3"`` or ``"1.3x"`` as a number; other types unchanged.

    Raises:
        ValueError: The text is no number.
    """
    if not isinstance(value, str):
        return value
    try:
        return float(value.strip().removesuffix("x"))
    except ValueError:
        raise ValueError(
            f"{value!r} is not a number: give the speed as a multiple of the original's, e.g. 1.3."
        ) from None
