"""What a person reads of a comparison."""

from io import StringIO
from pathlib import Path

import torch
from rich.console import Console

import basis_sharing
from basis_sharing.reports.comparison_table import comparison_table
from basis_sharing.results.comparison import Comparison, Continuation, Generation
from pico import PICO, pico_tokenizer

TEXT = "What is shown must be what was measured, and nothing that a model writes may confuse a terminal. " * 8


def compared(text: str) -> Comparison:
    changed = PICO["llama"]()
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    settings = {
        "tokenizer": pico_tokenizer(),
        "length": 64,
        "evaluation_windows": 3,
        "prompts": ("Once",),
        "new_tokens": 3,
    }
    return basis_sharing.compare(PICO["llama"](), changed, text=text, **settings)


def shown(result: Comparison) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(comparison_table(result))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_every_number_is_shown(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    result = compared(str(tmp_path / "t.txt"))
    printed = shown(result)
    assert result.agreement is not None
    assert result.difference is not None
    for number in (
        f"{result.first.perplexity.perplexity:,.4f}",
        f"{result.second.perplexity.bits_per_byte:.5f}",
        f"{result.difference.quotient:,.4f} x",
        f"{result.agreement.mean_kl:.5f}",
        f"{result.agreement.top1:.2%}",
        f"{result.agreement.disagreements[0].kl:.3f}",
        "3 x 64",
    ):
        assert number in printed
    assert "not run" not in printed
    again = basis_sharing.compare(PICO["llama"](), baseline=result, tokenizer=pico_tokenizer())
    printed = shown(again)
    assert "A  LlamaForCausalLM (as in the baseline, not run)" in printed
    assert f"then {result.second.perplexity.perplexity:,.4f}" in printed


def test_what_a_model_writes_cannot_confuse_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    wild = Continuation(text="\x1b[31mred [bold]and\nnew\x07", tokens=9, ended=True)
    generation = Generation(prompt="[/]Once", first=wild, second=Continuation(text="", tokens=0, ended=True))
    printed = shown(compared(str(tmp_path / "t.txt")).model_copy(update={"generations": (generation,)}))
    assert "\\x1b[31mred [bold]and" in printed
    assert "new\\x07 (end)" in printed
    assert "\x1b" not in printed
    assert "[/]Once" in printed
    assert "(only end-of-text)" in printed
