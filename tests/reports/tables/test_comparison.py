"""What a person reads of a comparison."""

from io import StringIO
from pathlib import Path

import torch
from rich.console import Console

import basis_sharing
from basis_sharing.reports.tables.cells import quoted
from basis_sharing.reports.tables.comparison import comparison_summary, comparison_tables, without_empty_lines
from basis_sharing.reports.terminal import printable
from basis_sharing.results.comparison import Comparison, Continuation, Generation
from pico import PICO, pico_tokenizer
from samples import comparison

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
    console.print(printable(*comparison_summary(result)))
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
        f"{100 * result.agreement.top1:.2f} %",
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
    assert "new\\x07" in printed
    assert "(9 tokens, ended by the model)" in printed
    assert "\x1b" not in printed
    assert "[/]Once" in printed
    assert "(only end-of-text)" in printed


def test_every_part_has_a_table_where_there_is_something_to_show() -> None:
    titles = [table.title for table in comparison_tables(comparison())]
    assert titles == [
        "How far apart the models are",
        "Limits",
        "Accuracy on tasks",
        "Where they disagree most",
        "What they write (greedily), at most 8 tokens",
    ]
    bare = comparison(
        agreement=None,
        tasks=(),
        generations=(),
        difference=None,
        verdict=comparison().verdict.model_copy(update={"checks": ()}),
    )
    assert [table.title for table in comparison_tables(bare)] == titles[:1]


def test_limits_and_tasks() -> None:
    _, limits, tasks, *_ = comparison_tables(comparison())
    assert limits.rows == (("max kl", "0.2", "0.25", "broken, but uncertain"),)
    assert tasks.rows == (("arc_easy", "75.0 %", "50.0 %", "-25.0 +- 25.0", "1", "0", "1.000"),)


def test_many_empty_lines_become_a_word() -> None:
    assert without_empty_lines("a\n\nb" + "\n" * 36 + "c") == "a\n\nb\n[35 empty lines]\nc"


def test_marks_for_what_cannot_be_seen() -> None:
    assert quoted("a\nb") == "a\\nb"
    assert quoted("  ") == '"  "'
    assert quoted("a b\x07") == "a b\\x07"
