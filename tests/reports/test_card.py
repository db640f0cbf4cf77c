"""The model card: front matter that the hub reads, and what a finder has to know."""

from pathlib import Path

import pytest
import yaml

from basis_sharing import compress
from basis_sharing.reports.card import CARD_FILE, model_card
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from pico import PICO, pico_tokenizer, save_pico
from samples import compression


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    text = root / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    model = save_pico("llama", root / "original")
    (model / CARD_FILE).write_text("the card of the original")
    compress(model, 0.3, method="svd", evaluate=(str(text),), length=64, output=root / "small")
    return root / "small"


def front_matter(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(front)
    return found


def test_every_compressed_folder_has_a_card(folder: Path) -> None:
    card = (folder / CARD_FILE).read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "the card of the original" not in card
    assert (folder.parent / "original" / CARD_FILE).read_text() == "the card of the original"
    result = CompressionResult.read(folder / RESULT_FILE)
    assert f"| parameters | {result.before.parameters:,} | {result.after.parameters:,} |" in card
    assert f"{result.perplexity_before[0].perplexity:,.4f} | {result.perplexity_after[0].perplexity:,.4f}" in card
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in card
    assert 'from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    assert "basis-sharing compress original -o DIR --ratio 0.3 --method svd" in card
    assert "licence and the terms of use of the original" in card


def test_the_card_gives_no_folders_away(folder: Path) -> None:
    assert str(folder.parent) not in (folder / CARD_FILE).read_text()


def test_the_original_is_named_where_the_hub_knows_it(folder: Path) -> None:
    result = CompressionResult.read(folder / RESULT_FILE)
    assert "base_model" not in front_matter((folder / CARD_FILE).read_text())
    assert "name the original as `base_model`" in (folder / CARD_FILE).read_text()
    card = model_card(result, hub_id="org/original")
    assert front_matter(card)["base_model"] == "org/original"
    assert "A smaller form of `org/original`" in card
    assert "name the original as" not in card


def test_a_model_in_memory_has_a_card_too(tmp_path: Path) -> None:
    compress(PICO["gpt2"](), 0.3, method="svd", tokenizer=pico_tokenizer(), output=tmp_path / "small")
    card = (tmp_path / "small" / CARD_FILE).read_text()
    assert "basis_sharing.compress(model, tokenizer=tokenizer, output='DIR', ratio=0.3, method='svd')" in card
    assert "Not measured when the model was made" in card
    assert "| bytes on disk | - |" in card


def test_everything_that_was_done_is_in_the_card() -> None:
    card = model_card(compression(), hub_id=None)
    for words in (
        "| parameters | 1,000 | 820 | -18.0 % |",
        "here only of the roles q, k",
        "| wiki\\|test.txt | ",
        "The plan expected +0.1250 nats per token, 1.133 x the perplexity, scaled by 1.25 +- 0.05, one plan measured "
        "on wiki.txt.",
        "Method auto; ratio asked 0.2, reached 0.2250 of the parameters of the compressible projections removed.",
        "Groups of projections: 2, of which 1 share a basis.",
        "Calibrated on c4:c4.txt: 4 windows of 64 tokens, in float32.",
        "Factors and norms were trained on the original's predictions for 1,200 steps",
        "- ... and 2 more, see basis_sharing.json",
    ):
        assert words in card
    assert "/data" not in card
    assert "without fine-tuning" not in card
