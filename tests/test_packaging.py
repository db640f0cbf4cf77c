"""What a package index gets: one version, and a README that needs no other file."""

import re
import tomllib
from pathlib import Path
from typing import Any

import basis_sharing

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)")


def long_description() -> str:
    """Return what hatch-fancy-pypi-readme makes of the README: its fragments, then its substitutions in turn."""
    fragments = [
        (ROOT / part["path"]).read_text(encoding="utf-8") if "path" in part else part["text"]
        for part in README["fragments"]
    ]
    text = "".join(fragments)
    for rule in README["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_the_version_is_in_one_file() -> None:
    version = PROJECT["tool"]["hatch"]["version"]
    assert "version" in PROJECT["project"]["dynamic"]
    assert "version" not in PROJECT["project"]
    assert ROOT / version["path"] == ROOT / "src" / "basis_sharing" / "__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", basis_sharing.__version__)


def test_the_long_description_has_no_relative_link_and_no_picture() -> None:
    text = long_description()
    assert [target for target in LINK.findall(text) if not target.startswith("https://")] == []
    assert "![" not in text
    assert "README.ja.md" not in text


def test_the_long_description_keeps_every_heading_and_absolute_link() -> None:
    readme, text = (ROOT / "README.md").read_text(encoding="utf-8"), long_description()
    for kept in (r"(?m)^#+ .*$", r"\]\(https://[^)]+\)", r"(?ms)^```.*?^```"):
        assert re.findall(kept, text) == re.findall(kept, readme)


def test_the_text_of_a_relative_link_stays() -> None:
    assert "[choosing a ratio](" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(choosing a ratio)" in long_description()
