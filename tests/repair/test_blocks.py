"""Refit and refinement of blocks: what they may change, what they must not, and how they end."""

import copy
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from basis_sharing.errors import RecipeError
from basis_sharing.models.decoder import describe
from basis_sharing.repair import block_training, blocks
from basis_sharing.repair.block_training import BlockGain
from basis_sharing.repair.blocks import repair_blocks
from basis_sharing.repair.segments import RepairSchedule
from basis_sharing.run import resume
from basis_sharing.run.machine import Machine
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.verbs import compress as pipeline
from basis_sharing.verbs.compress import compress
from pico import PICO, TEXT, pico_tokenizer

IDS = torch.randint(0, 250, (32, 32), generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """Ends a run as no error of its own does."""


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_MOST_EPOCHS", 4)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def pair(name: str, text: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a compressed model and its original."""
    original = PICO[name]()
    recipe = {"ratio": 0.4, "calibration": str(text), "windows": 4, "length": 64, **settings}
    model, _ = compress(copy.deepcopy(original), tokenizer=pico_tokenizer(), **recipe)
    return model, original


def refined(model: Any, original: Any, **changes: Any) -> tuple[RepairSchedule, list[BlockGain]]:
    settings = {"refit": False, "minutes": 0.1, "dtype": torch.float32, "seed": 0, **changes}
    return repair_blocks(model, original, describe(original), IDS, **settings)


def output_error(model: Any, original: Any) -> float:
    ids = torch.randint(0, 250, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (model(ids).logits - original(ids).logits).square().mean().item()


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma3"])
def test_it_brings_the_model_nearer_to_the_original(name: str, text_file: Path) -> None:
    model, original = pair(name, text_file)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    before = output_error(model, original)
    _, gains = refined(model, original)
    assert len(gains) == len(describe(original).blocks)
    assert all(gain.after <= gain.before for gain in gains)
    assert output_error(model, original) < before
    assert {n: p.shape for n, p in model.named_parameters()} == shapes


def test_bases_that_blocks_share_stay_as_they_are_and_shared(text_file: Path) -> None:
    model, original = pair("llama", text_file, method="basis-sharing")
    name = "model.layers.{}.self_attn.q_proj"
    basis = model.get_submodule(name.format(0)).basis.weight
    values = basis.detach().clone()
    refined(model, original)
    first, second = (model.get_submodule(name.format(block)) for block in (0, 1))
    assert first.basis.weight is second.basis.weight is basis
    assert torch.equal(basis, values)


def test_bases_that_roles_of_one_block_share_are_trained_and_stay_shared(text_file: Path) -> None:
    model, original = pair("llama", text_file, across_depth=False)
    modules = [m for m in model.modules() if isinstance(m, FactorizedLinear)]
    shared = [(a, b) for a in modules for b in modules if a is not b and a.basis.weight is b.basis.weight]
    assert shared, "the plan has a joint group"
    values = [a.basis.weight.detach().clone() for a, _ in shared]
    refined(model, original)
    assert all(a.basis.weight is b.basis.weight for a, b in shared)
    assert any(not torch.equal(a.basis.weight, old) for (a, _), old in zip(shared, values, strict=True))


def test_the_original_and_the_embeddings_are_not_touched(text_file: Path) -> None:
    model, original = pair("llama-untied-bias", text_file)
    kept = {n: p.clone() for n, p in original.state_dict().items()}
    embeddings = model.get_input_embeddings().weight.clone()
    refined(model, original)
    assert all(torch.equal(p, kept[n]) for n, p in original.state_dict().items())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert all(p.grad is None for p in model.parameters())


def test_a_block_that_training_makes_worse_is_left_as_it_was(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = pair("llama", text_file)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    monkeypatch.setattr(block_training, "relative_adamw", lambda p, _: torch.optim.SGD(p, lr=1e6))
    _, gains = refined(model, original)
    assert all(gain.epochs == 0 and gain.diverged and gain.after == gain.before for gain in gains)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_more_minutes_mean_more_text_then_more_epochs(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = pair("llama", text_file)
    # What is timed takes one second each.
    monkeypatch.setattr(blocks, "time", SimpleNamespace(monotonic=map(float, itertools.count()).__next__))
    found = [refined(copy.deepcopy(model), original, minutes=minutes)[0] for minutes in (0.3, 0.5, 1)]
    assert 16 <= found[0].segments < found[1].segments <= found[2].segments == len(IDS)
    assert found[0].epochs <= found[1].epochs < found[2].epochs == 4
    assert not set(found[2].training) & set(found[2].held_out)


def test_killed_half_way_it_ends_with_the_same_weights(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "_SHARE", float("inf"))
    model, original = pair("llama", text_file)
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    interrupted.mkdir()
    whole.mkdir()

    def killing(event: Progress) -> None:
        if event.done >= 0.5 * event.total:
            raise Killed

    with pytest.raises(Killed):
        refined(copy.deepcopy(model), original, folder=interrupted, progress=killing)
    shutil.copy(interrupted / "schedule.json", whole)  # the pace is decided once
    ours, theirs, events = copy.deepcopy(model), copy.deepcopy(model), []
    assert refined(ours, original, folder=interrupted, progress=events.append) == refined(
        theirs, original, folder=whole
    )
    assert events[0].done > 0.3 * events[0].total
    assert all(torch.equal(p, theirs.state_dict()[n]) for n, p in ours.state_dict().items())


def test_training_in_several_processes_is_refused(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "machine_for", lambda *_: Machine(processes=Processes(0, 2)))
    with pytest.raises(RecipeError, match="--refine runs in one process"):
        compress(PICO["llama"](), 0.4, tokenizer=pico_tokenizer(), refine=1, calibration=str(text_file))


def test_too_few_minutes_are_refused_with_the_fewest(text_file: Path) -> None:
    model, original = pair("llama", text_file)
    with pytest.raises(RecipeError, match="too few for this model here: at least"):
        refined(model, original, minutes=1e-6)


def test_too_little_text_is_refused(text_file: Path) -> None:
    model, original = pair("llama", text_file)
    with pytest.raises(RecipeError, match=r"has 3 segments of 32 tokens, but .* needs 16"):
        repair_blocks(model, original, describe(original), IDS[:3], refit=False, minutes=1, dtype=torch.float32, seed=0)


def test_a_compression_with_refinement_reports_it_and_loads(text_file: Path, tmp_path: Path) -> None:
    original = PICO["llama"]()
    _, result = compress(
        original,
        tokenizer=pico_tokenizer(),
        ratio=0.4,
        refine=0.1,
        calibration=str(text_file),
        windows=32,
        length=64,
        output=tmp_path / "out",
    )
    done = result.repair
    assert done is not None
    assert len(done.before) == 5
    assert sum(done.after) < sum(done.before)
    assert done.refitted == done.before
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Each block was trained, towards the original's states" in card
    assert "without fine-tuning" not in card


@pytest.mark.parametrize("name", sorted(PICO.keys() - {"mixtral"}))
def test_the_anchored_refit_changes_coefficients_only_and_helps(name: str, text_file: Path) -> None:
    model, original = pair(name, text_file, method="svd-llm")
    before, error = {n: p.clone() for n, p in model.named_parameters()}, output_error(model, original)
    schedule, gains = refined(model, original, refit=True, minutes=None)
    assert schedule.epochs == 0
    assert all(gain.after == gain.refitted <= gain.before for gain in gains)
    assert output_error(model, original) < error
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(n.endswith("coeff.weight") for n in changed)


def test_refit_and_training_together(text_file: Path) -> None:
    model, original = pair("llama", text_file, method="svd-llm")
    _, gains = refined(model, original, refit=True)
    assert all(gain.after <= gain.refitted <= gain.before for gain in gains)
    assert any(gain.after < gain.refitted < gain.before for gain in gains)


def test_experts_that_read_other_tokens_are_left_out(text_file: Path) -> None:
    model, original = pair("mixtral", text_file, method="svd-llm")
    refined(model, original, refit=True, minutes=None)


@pytest.mark.parametrize("settings", [{}, {"method": "svd-llm", "refit": "anchored"}])
def test_a_compression_with_an_anchored_refit_reports_it(
    settings: dict[str, str], text_file: Path, tmp_path: Path
) -> None:
    fixed = {"tokenizer": pico_tokenizer(), "calibration": str(text_file), "windows": 32, "length": 64}
    _, result = compress(PICO["llama"](), 0.4, output=tmp_path / "out", **fixed, **settings)
    assert result.repair is not None
    assert result.repair.refit
    assert sum(result.repair.refitted) <= sum(result.repair.before)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The coefficients of each block were refitted, towards the original's states, on 32 segments" in card
    assert "without fine-tuning" in card


def test_where_the_text_is_too_short_the_method_says_so_and_who_asked_for_a_refit_is_refused(text_file: Path) -> None:
    settings = {"tokenizer": pico_tokenizer(), "calibration": str(text_file), "windows": 4, "length": 64}
    _, result = compress(PICO["llama"](), 0.4, **settings)
    assert result.repair is None
    assert any(note.startswith("coefficients were not refitted") and "needs 16" in note for note in result.notes)
    with pytest.raises(RecipeError, match="4 segments of 64 tokens"):
        compress(PICO["llama"](), 0.4, refit="anchored", **settings)
