"""The documentation names only what exists: verbs, flags, files."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from basis_sharing.cli.main import app
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.config_basis_sharing import entries_of_config
from basis_sharing.runtime.factorized_basis_sharing import decode_pivots
from basis_sharing.runtime.format_basis_sharing import FORMAT_VERSION, entry_from

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROOT_TEXTS = [ROOT / name for name in ("README.md", "README.ja.md", "CONTRIBUTING.md", "SECURITY.md")]
TEXTS = [*ROOT_TEXTS, *sorted(DOCS.glob("*.md"))]
WITH_OUR_COMMANDS = [path for path in TEXTS if not path.name.startswith("adding-")]
"""Pages about additions have commands of their own, which tests/test_contributing.py runs."""
GROUP: Any = typer.main.get_command(app)
FLAGS = {
    verb: {
        flag
        for p in command.params
        if p.param_type_name == "option" and not p.hidden
        for flag in (*p.opts, *p.secondary_opts)
    }
    | {"--help", "-h"}
    for verb, command in GROUP.commands.items()
}
FOREIGN = {
    *("--strict", "--version"),
    *("--continuous-batching", "--quantization", "--trust-remote-code"),
}
"""Flags of mkdocs and of the command itself; of ``transformers serve``."""


def load(name: str) -> ModuleType:
    """Return a script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_hooks() -> ModuleType:
    return load("hooks")


def commands(markdown: str) -> Iterator[str]:
    """Yield every command in fenced blocks and in code spans that calls ``basis-sharing``."""
    fenced = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced.findall(markdown) for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", fenced.sub("", markdown))]
    for text in [*lines, *spans]:
        if text.strip().startswith("basis-sharing "):
            yield text.strip()


def mistakes(markdown: str) -> list[str]:
    """Say which verbs and flags in ``markdown`` do not exist."""
    found = []
    for command in commands(markdown):
        _, verb, *rest = shlex.split(command, comments=True)
        if rest and f"{verb} {rest[0]}" in FLAGS:
            verb, *rest = f"{verb} {rest[0]}", *rest[1:]
        if verb.startswith("-"):
            continue
        if verb not in FLAGS:
            found.append(f"no verb {verb}: {command}")
            continue
        used = {token.partition("=")[0] for token in rest if re.match(r"--?[a-z]", token)}
        found += [f"{verb} has no {flag}: {command}" for flag in sorted(used - FLAGS[verb])]
    known = FOREIGN.union(*FLAGS.values())
    spans = " ".join(re.findall(r"`(--[^`]+)`", markdown))
    found += [f"no verb has {flag}" for flag in sorted(set(re.findall(r"--[a-z][a-z-]*", spans)) - known)]
    return found


@pytest.mark.parametrize("path", WITH_OUR_COMMANDS, ids=lambda path: path.name)
def test_commands_and_flags_exist(path: Path) -> None:
    assert mistakes(path.read_text(encoding="utf-8")) == []


def test_a_wrong_verb_or_flag_is_found() -> None:
    text = "```sh\nbasis-sharing squeeze ./m\nbasis-sharing plan ./m \\\n    --quickly  # --ignored\n```\nand `--never`"
    assert mistakes(text) == [
        "no verb squeeze: basis-sharing squeeze ./m",
        "plan has no --quickly: basis-sharing plan ./m      --quickly  # --ignored",
        "no verb has --never",
    ]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    generated = {DOCS / page for page in load_hooks().pages()}
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("#"):
            continue
        file = (path.parent / target.partition("#")[0]).resolve()
        assert file.exists() or file in generated, f"{path.name} links to {target}"


def test_every_verb_has_a_page_with_all_its_flags() -> None:
    pages = load_hooks().pages()
    names = {verb: verb.replace(" ", "-") for verb in FLAGS}
    assert set(pages) == {"api.md", "cli/index.md", *(f"cli/{name}.md" for name in names.values())}
    for verb, flags in FLAGS.items():
        page = pages[f"cli/{names[verb]}.md"]
        assert f"[`{verb}`]({names[verb]}.md)" in pages["cli/index.md"]
        assert f"basis-sharing {verb} " in page
        assert [flag for flag in flags - {"--help", "-h"} if f"`{flag}`" not in page] == []
        assert mistakes(page) == []


def test_the_navigation_names_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = {file for section in nav for pages in section.values() for page in pages for file in page.values()}
    assert named == {path.name for path in DOCS.glob("*.md")}


def test_every_folder_of_the_package_has_a_purpose_and_a_floor() -> None:
    script = load("architecture")
    package = ROOT / "src" / "basis_sharing"
    folders = {path.parent.name for path in package.glob("*/__init__.py")} | {"errors"}
    on_floors = {name for floor in script.floors() for name in floor}
    assert folders <= on_floors
    assert set(script.purposes()) == on_floors


def test_the_picture_of_the_floors_is_up_to_date() -> None:
    script = load("architecture")
    assert script.fingerprint().encode() in script.PICTURE.read_bytes(), "run: python docs/architecture.py"


def test_every_word_of_the_glossary_is_linked_to_its_page() -> None:
    rows = re.findall(r"(?m)^\| (?!word \|)[^-].*\|$", (DOCS / "glossary.md").read_text(encoding="utf-8"))
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"\| \[[^\]]+\]\([a-z-]+\.md(#[a-z0-9-]+)?\) \|$", row)] == []


def json_blocks(page: str) -> list[Any]:
    """Return what the JSON blocks of a page hold."""
    found = re.findall(r"(?ms)^```json\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"))
    return [json.loads(block) for block in found]


def test_the_files_on_the_page_of_the_format_are_read(tmp_path: Path) -> None:
    checkpoint, rounded, embeddings, narrow, single, old, plan = json_blocks("checkpoint-format.md")
    config = checkpoint["quantization_config"]
    entries = entries_of_config(config)
    assert config["format_version"] == FORMAT_VERSION
    assert [entry.to_dict() for entry in entries] == config["entries"]
    assert len(decode_pivots(config["entries"][0]["pivots"], 64, config["entries"][0]["rank"])[0]) == 55
    assert entries_of_config(old)[0] == entries[1]
    alone = [rounded, embeddings, narrow, single]
    assert [entry_from(one).to_dict() for one in alone] == alone
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    assert json.loads(Plan.read(path).model_dump_json()) == plan
    path.write_text(json.dumps({name: plan[name] for name in ("version", "method", "ratio", "entries")}))
    assert Plan.read(path).entries == Plan.model_validate(plan).entries


def test_the_page_names_the_files_that_travel() -> None:
    text = (DOCS / "checkpoint-format.md").read_text(encoding="utf-8")
    runtime = ROOT / "src" / "basis_sharing" / "runtime"
    named = set(re.findall(r"(?m)^\| `(\w+_basis_sharing\.py)` \|", text))
    assert named == {path.name for path in runtime.glob("*_basis_sharing.py")}


def test_building_the_pages_does_not_import_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r}); sys.dont_write_bytecode = True\n"
        "import hooks; hooks.pages(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_two_readmes_know_each_other() -> None:
    english, japanese = (ROOT / name for name in ("README.md", "README.ja.md"))
    assert "(README.ja.md)" in english.read_text(encoding="utf-8").partition("## ")[0]
    assert "(README.md)" in japanese.read_text(encoding="utf-8").partition("## ")[0]
