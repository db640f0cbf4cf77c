"""Signs of a printed page in place of their stand-ins."""

import pytest

from basis_sharing.reports.typography import typographic


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-", "\u2013"),
        ("-18.0 %", "\u221218.0 %"),
        ("40 bytes (-25.9 %)", "40\u00a0bytes (\u221225.9 %)"),
        ("-0.1 to +0.3", "\u22120.1 to +0.3"),
        ("1.136 x", "1.136 \u00d7"),
        ("1.25 x as fast, 2.00 x; (3 x)", "1.25 \u00d7 as fast, 2.00 \u00d7; (3 \u00d7)"),
        ("42 x 64", "42 \u00d7 64"),
        ("-25.0 +- 2.5", "\u221225.0 \u00b1 2.5"),
        ("4.0 ms -> 2.0 ms", "4.0\u00a0ms \u2192 2.0\u00a0ms"),
        ("541.3 MiB", "541.3\u00a0MiB"),
        ("wiki-2.txt and 4 xylophones, --ratio", "wiki-2.txt and 4 xylophones, --ratio"),
    ],
)
def test_signs(text: str, shown: str) -> None:
    assert typographic(text) == shown


def test_words_stay_as_they_are() -> None:
    assert typographic("-1 x 2 -> 3 +- 4", "left") == "-1 x 2 -> 3 +- 4"
    assert typographic("-", "left") == "\u2013"
