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
