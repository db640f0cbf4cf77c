"""Typographic signs for pages: minus, multiplication, plus-minus, arrow, dash."""

import re
from typing import Literal

_NOTHING = "\u2013"
_SIGNS = (
    (re.compile(r"\+-"), "\u00b1"),
    (re.compile(r"(?<![^\s(])-(?=\d)"), "\u2212"),
    (re.compile(r"(?<=\d) x(?![^\s;,.()])"), " \u00d7"),
    (re.compile(r" -> "), " \u2192 "),
    (re.compile(r"(?<=\d) (?=(?:bytes|[KMGT]iB|m?s)(?!\w))"), "\u00a0"),
)


def typographic(text: str, align: Literal["left", "right"] = "right") -> str:
    """Return a cell or a sentence with typographic signs in place of their ASCII forms.

    Args:
        text: Plain text; ``-`` alone means nothing.
        align: ``"left"`` for a cell of words, which is not changed because it may quote files and models.
    """
    if text == "-":
        return _NOTHING
    if align == "left":
        return text
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    return text
