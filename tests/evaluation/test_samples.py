"""What models write: greedily, ended by themselves or not; prompts that cannot be used."""

from pathlib import Path

import pytest
import torch

from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.samples import continue_prompt, encode_prompts, read_prompts
from pico import PICO, pico_tokenizer


def test_it_is_greedy() -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    model.generation_config.repetition_penalty = 5.0  # not what the model itself would say
    (prompt,) = encode_prompts(model, tokenizer, ["Once upon a time"], 12)
    found = continue_prompt(model, tokenizer, prompt, 12)
    ids = prompt[None]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert found.text == tokenizer.decode(ids[0, len(prompt) :])
    assert found.tokens == 12
    assert not found.ended


def test_a_model_that_only_ends_the_text() -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    model.model.norm.weight.data.zero_()  # all logits are equal, and token 0 is the first of them
    model.generation_config.eos_token_id = [0, 5]
    (prompt,) = encode_prompts(model, tokenizer, ["Once"], 8)
    found = continue_prompt(model, tokenizer, prompt, 8)
    assert (found.text, found.tokens, found.ended) == ("", 0, True)


def test_prompts_are_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Once upon\na time \n")
    assert read_prompts(tmp_path / "p.txt") == ("Once upon", "a time ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "are empty: write one prompt a line"),
        (b"one\n\nthree\n", "line 2 of the prompts"),
        (b"one\n  \t\n", "line 2 of the prompts"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_files_of_prompts(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=r".") as caught:
        read_prompts(tmp_path / "p.txt")
    assert sentence in str(caught.value)


def test_a_missing_file_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.txt cannot be read \(No such file or directory\): check the path"):
        read_prompts(tmp_path / "none.txt")


def test_prompts_the_model_cannot_continue() -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    with pytest.raises(RecipeError, match="prompt 2 has 250 tokens, and with 40 new ones that is more than the 256"):
        encode_prompts(model, tokenizer, ["fine", "x" * 250], 40)
    with pytest.raises(RecipeError, match=r"prompt 1 .* has no tokens"):
        encode_prompts(model, tokenizer, [""], 40)
