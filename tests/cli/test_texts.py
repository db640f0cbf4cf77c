"""Texts on the command line: standard input, a folder, and notes about what was left out."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from basis_sharing.results.compression import CompressionResult
from workspace import Workspace

SENTENCE = "The quick brown fox jumps over the lazy dog. "
SETTINGS = ("--ratio=0.2", "--windows=4", "--length=64", "--method=svd-llm")


class Piped(SimpleNamespace):
    """Standard input with something on it."""

    __hash__ = object.__hash__


@pytest.fixture
def space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workspace:
    return Workspace(tmp_path, capsys)


@pytest.fixture
def _piped(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": SENTENCE * 10}, {"text": None}, {"text": SENTENCE * 10}]
    raw = "\n".join(json.dumps(record) for record in records).encode()
    monkeypatch.setattr(sys, "stdin", Piped(buffer=io.BytesIO(raw), closed=False, isatty=lambda: False))


@pytest.mark.usefixtures("_piped")
def test_standard_input_is_calibrated_on_and_what_is_left_out_is_said(space: Workspace) -> None:
    assert space.run("compress", space.model, "-o", space.out, "--calibration", "-", *SETTINGS) == 0
    note = "1 of the 3 records of - is left out; field 'text' of line 2 of standard input is missing."
    assert note in CompressionResult.read(space.out / "basis_sharing.json").notes
    assert note[:40] in " ".join(space.capsys.readouterr().out.split())
    assert space.run("evaluate", space.out, "--text", "-", "--length=64") == 0
    assert note[:40] in " ".join(space.capsys.readouterr().out.split())


@pytest.mark.usefixtures("_piped")
@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "--ratio=0.2", "--output=out", "--calibration=-", "--evaluate=-"),
        ("compress", "--ratio=0.2", "--output=out", "--calibration=- + chat:-"),
        ("plan", "--ratio=0.2", "--output=out.json", "--calibration=-", "--evaluate=-"),
        ("rollout", "--output=out", "--calibration=-", "--text=-", "--max-perplexity-increase=10%"),
        ("evaluate", "--text=-", "--text=-"),
    ],
)
def test_standard_input_is_one_text(
    space: Workspace, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(space.root)
    verb, *options = arguments
    assert "standard input (-) is named twice" in space.refused(verb, space.model, *options)


def test_a_folder_with_an_odd_file(space: Workspace) -> None:
    folder = space.root / "texts"
    folder.mkdir()
    (folder / "a.md").write_text(SENTENCE * 20)
    (folder / "b.pdf").write_bytes(b"%PDF-1.7")
    assert space.run("evaluate", space.model, "--text", folder, "--length=64") == 0
    assert "1 file in" in space.capsys.readouterr().out
    (folder / "a.md").unlink()
    assert "none of the 1 files in" in space.refused("evaluate", space.model, "--text", folder)


def test_a_plan_tells_what_was_left_out(space: Workspace) -> None:
    path = space.root / "a.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in (SENTENCE * 20, None)))
    out = ("-o", space.root / "plan.json", "--baselines=none")
    assert space.run("plan", space.model, *out, "--calibration", path, "--windows=4", "--length=64") == 0
    assert "1 of the 2 records of" in " ".join(space.capsys.readouterr().out.split())
