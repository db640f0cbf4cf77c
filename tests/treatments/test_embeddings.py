"""Embeddings and output head in 8 bits: what is saved, in every way it is loaded, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import basis_sharing
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.runtime.entries_basis_sharing import Embeddings
from basis_sharing.runtime.format_basis_sharing import FormatError
from basis_sharing.runtime.rounded_basis_sharing import RoundedEmbedding, RoundedLinear
from basis_sharing.treatments.embeddings import entries_of, round_table, saved_bytes
from forks import fresh
from pico import PICO, save_pico
from test_matrix import REMOTE, logits

FAMILIES = ["llama", "llama-untied-bias", "gpt2", "gemma3", "opt"]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_loads_as_it_was_saved(name: str, tmp_path: Path) -> None:
    dense = save_pico(name, tmp_path / "dense")
    plain, _ = basis_sharing.compress(dense, ratio=0.3, method="svd")
    model, result = basis_sharing.compress(dense, ratio=0.3, method="svd", embedding_bits=8, output=tmp_path / "small")
    expected, exact = logits(model), logits(plain)
    assert 0 < (expected - exact).abs().max() < 0.1 * exact.abs().max()
    assert result.after.parameters == result.before.parameters - (
        result.before.projection_parameters - result.after.projection_parameters
    )
    assert any("Embeddings and output head are in 8 bits" in note for note in result.notes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(loaded), expected)
    assert memory_bytes(loaded) == result.after.bytes_in_memory
    assert memory_bytes(plain) - memory_bytes(loaded) == saved_bytes(result.recipe, plain)
    tied = PICO[name]().config.tie_word_embeddings
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert isinstance(table, RoundedEmbedding)
    assert isinstance(head, RoundedLinear)
    assert (table.packed is head.packed) == (table.scales is head.scales) == tied
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    ids = torch.arange(8)[None]
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)
    basis_sharing.export(tmp_path / "small", tmp_path / "multiplied", to="dense")
    out = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "multiplied"))
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)


def test_it_loads_without_the_package(tmp_path: Path) -> None:
    dense = save_pico("gemma3", tmp_path / "dense")
    model, _ = basis_sharing.compress(dense, ratio=0.3, method="svd", embedding_bits=8, output=tmp_path / "small")
    done = fresh(REMOTE, tmp_path / "small", cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_a_limit_on_bytes_counts_what_is_saved(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 200)
    dense = save_pico("llama", tmp_path / "dense")
    settings: dict[str, Any] = {"calibration": str(tmp_path / "text.txt"), "windows": 2, "length": 64}
    limit = memory_bytes(PICO["llama"]()) // 4
    settings |= {"max_bytes": limit, "treatments": "bits", "refit": "never"}
    expected = []
    for bits in (8, None):
        _, result = basis_sharing.compress(dense, embedding_bits=bits, **settings)
        assert 0.9 * limit < result.after.bytes_in_memory <= limit
        assert result.prediction is not None
        expected.append(result.prediction.loss)
    assert expected[0] < 0.7 * expected[1]


def test_the_arranged_table_of_a_head_is_still_looked_up() -> None:
    table, head = nn.Embedding(1024, 64), nn.Linear(64, 1024, bias=False)
    head.weight = table.weight
    model = nn.ModuleDict({"table": table, "head": head})
    exact = table.weight.detach().clone()
    model.get_input_embeddings = lambda: table  # type: ignore[assignment]
    model.get_output_embeddings = lambda: head  # type: ignore[assignment]
    (entry,) = entries_of(model)
    round_table(model, entry)
    ids = torch.tensor([[3, 1023], [0, 7]])
    found = model["table"](ids)
    torch.testing.assert_close(found, exact[ids], atol=0.02, rtol=0.0)
    with torch.no_grad():
        logits = model["head"](exact[:2])
        assert (logits - exact[:2] @ exact.T).abs().max() < 0.02 * logits.abs().max()
        assert model["head"].is_arranged == model["table"].is_arranged
        assert torch.equal(model["table"](ids), found)


def test_what_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"embedding_bits 4 is not possible: give 8, or leave it out"):
        basis_sharing.Recipe.create(ratio=0.2, embedding_bits=4)
    with pytest.raises(FormatError, match="no table in int8"):
        Embeddings(members=("a",), tensors={"weight": {"dtype": "int4", "group": 32}})
    model = PICO["llama"]()
    model.set_input_embeddings(nn.EmbeddingBag(260, 64))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"EmbeddingBag of this model cannot be rounded: leave out --embedding-bits"):
        entries_of(model)
