"""The pages about additions are followed literally, in a copy of the package.

A block of such a page whose first line is a comment with a path is a file (``python``, ``yaml``) or a change to one
(``diff``, several of them with ``@@`` between). Commands are run in the order of the page, its tests after them.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forks import fresh
from pico import save_with_texts

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("adding-*.md"))
RUNNER = """
import json, pathlib, sys
sys.argv[0] = "basis-sharing"
import basis_sharing
from basis_sharing.cli.main import main
assert pathlib.Path(basis_sharing.__file__).parent == pathlib.Path("basis_sharing").absolute()

def run(arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code

codes = [run(arguments) for arguments in json.loads(sys.argv[1])]
import pytest
tests = json.loads(sys.argv[2])
codes.append(pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]) if tests else 0)
print("codes", codes)
sys.exit(any(codes))
"""


@dataclass(frozen=True)
class Block:
    """A fenced block that is a file, or a change to one."""

    language: str
    path: str
    text: str

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")

    @property
    def is_source(self) -> bool:
        return self.path.endswith(".py") and not self.is_test


def fenced(page: str) -> Iterator[tuple[str, str]]:
    """Yield language and text of every fenced block of a page."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    yield from re.findall(r"(?ms)^```(\w+)\n(.*?)^```", text)


def blocks(page: str) -> list[Block]:
    """Return the files and changes that a page shows."""
    found = []
    for language, text in fenced(page):
        first = re.match(r"# ([\w./-]+\.\w+)\n", text)
        if first is not None:
            rest = text[first.end() :] if language == "diff" else text
            found.append(Block(language, first[1], rest))
    return found


def commands(page: str) -> list[list[str]]:
    """Return the commands of a page, those of ``make`` and of the project's own tests left out."""
    lines = [line for language, text in fenced(page) if language == "sh" for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(("basis-sharing ", "python -c "))]


def changed(text: str, change: str) -> str:
    """Return a text with a change; lines that stay or go must be there once, in this order."""
    for hunk in change.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"not there once:\n{before}"
        text = text.replace(before, after)
    return text


def written(page: str, root: Path) -> list[str]:
    """Do what a page says in a copy of the package; return its test files."""
    shutil.copytree(
        ROOT / "src" / "basis_sharing", root / "basis_sharing", ignore=shutil.ignore_patterns("__pycache__")
    )
    tests = []
    for block in blocks(page):
        path = root / "basis_sharing" / block.path if block.is_source else root / block.path
        if block.is_test:
            tests.append(block.path)
        if block.language == "diff":
            original = ROOT / block.path if block.is_test else path
            content = changed(original.read_text(encoding="utf-8"), block.text)
        else:
            assert not path.exists(), f"{block.path} is not a new file"
            content = block.text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tests


def python(root: Path, code: str, *arguments: str) -> str:
    """Run a program with the copy of the package, and return what it prints."""
    path = [root, ROOT / "tests"]
    done = fresh(
        code, *arguments, cwd=root, path=path, environment={"PYTHONPATH": os.pathsep.join(map(str, path))}
    ).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def followed(page: str, root: Path, *further: list[str]) -> str:
    """Follow a page, with further commands at the end; return what was printed."""
    tests = written(page, root)
    save_with_texts(root)
    ours = [command[1:] for command in commands(page) if command[0] == "basis-sharing"]
    printed = python(root, RUNNER, json.dumps([*ours, *further]), json.dumps(tests))
    for command in commands(page):
        if command[0] == "python":
            printed += python(root, command[2])
    return printed


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a compressed folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = config["quantization_config"]["entries"]
    return found


def test_a_weighting(tmp_path: Path) -> None:
    printed = followed("adding-a-weighting", tmp_path, ["compress", "--help"])
    assert "input-norm" in printed.replace("\n", "")
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    assert config["quantization_config"]["provenance"]["method"] == "input-norm"


def test_a_cost(tmp_path: Path) -> None:
    printed = followed("adding-a-cost", tmp_path, ["plan", "--help"])
    assert "--max-reads" in printed
    assert json.loads((tmp_path / "plan.json").read_text())["entries"]


def test_a_treatment(tmp_path: Path) -> None:
    followed("adding-a-treatment", tmp_path)
    assert {entry["kind"] for entry in entries(tmp_path / "smaller")} == {"kept-inputs"}
    assert {entry["kind"] for entry in entries(tmp_path / "both")} <= {"factors", "kept-inputs"}
    code = (
        "import torch, basis_sharing\nfrom transformers import AutoModelForCausalLM as M\nids = torch.arange(9)[None]\n"
        "a, b = (M.from_pretrained(name)(ids).logits for name in ('./smaller', './dense'))\n"
        "print(torch.allclose(a, b, atol=1e-4))\n"
    )
    assert python(tmp_path, code).split()[-1] == "True"


def test_a_family(tmp_path: Path) -> None:
    followed("adding-a-family", tmp_path)
    known = "from basis_sharing.models.families import FAMILIES; print([family.name for family in FAMILIES])"
    assert "'starcoder2'" in python(tmp_path, known)


def test_an_export(tmp_path: Path) -> None:
    printed = followed("adding-an-export", tmp_path, ["export", "--help"])
    assert "state-dict: one safetensors file" in " ".join(printed.replace("│", " ").split())
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights.safetensors"]


def test_a_verb(tmp_path: Path) -> None:
    printed = followed("adding-a-verb", tmp_path)
    assert re.search(r"│ entries +List what the projections", printed)
    assert '"kind": "factors"' in printed
    assert "Entries of smaller" in printed


def test_a_setting(tmp_path: Path) -> None:
    printed = followed("adding-a-setting", tmp_path, ["compress", "--help"])
    assert "--least-rank" in printed
    for name in ("flag", "file"):
        plan = json.loads((tmp_path / f"{name}.json").read_text())
        assert min(entry["rank"] for entry in plan["entries"]) >= 16
    assert "Both plans treat every projection alike." in printed


def counts(page: str) -> tuple[int, int, int]:
    """Return how many files of the package are new, how many are changed, and how many tests there are."""
    sources = {(block.path, block.language == "diff") for block in blocks(page) if block.is_source}
    changes = sum(is_change for _, is_change in sources)
    return len(sources) - changes, changes, sum(block.is_test for block in blocks(page))


def test_the_table_of_counts_is_right() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| [^|]*\]\((adding-[a-z-]+)\.md\) \| (\d+) \| (\d+) \| (\d+) \|", text)
    assert {page: tuple(map(int, numbers)) for page, *numbers in rows} == {page: counts(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_an_example_and_a_test(page: str) -> None:
    new, changes, tests = counts(page)
    assert new + changes
    assert tests


def test_a_change_that_does_not_fit_is_found() -> None:
    assert changed("a\nb\nc\n", " a\n+x\n b\n@@\n-c\n") == "a\nx\nb\n"
    with pytest.raises(AssertionError, match="not there once"):
        changed("a\nb\n", " a\n+x\n c\n")
