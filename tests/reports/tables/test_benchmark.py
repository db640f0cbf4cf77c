"""What a person reads of a benchmark."""

from io import StringIO

from rich.console import Console

from basis_sharing.reports.tables.benchmark import against_first, benchmark_tables, conclusions, memory_table
from basis_sharing.reports.terminal import printable
from basis_sharing.results.benchmark import BenchmarkResult
from samples import benchmark


def shown(found: BenchmarkResult) -> str:
    console = Console(width=120, file=StringIO())
    console.print(printable(*benchmark_tables(found)))
    assert isinstance(console.file, StringIO)
    return " ".join(console.file.getvalue().split())


def test_tables_hold_every_number() -> None:
    text = shown(benchmark())
    for words in (
        "cpu (A Processor), 2 threads; prompts of 512 random tokens, 32 new ones",
        "5.0 MiB",
        "7.0 MiB",
        "210.0 (205.0 to 215.0)",
        "2,438",  # 512 tokens in 0.21 s
        "1.25 x (1.17 to 1.38)",
        "decode, batch 8, compiled",
        "note: something is unusual",
    ):
        assert words in text
    assert "on the device" not in text
    assert "on the device" in shown(benchmark(device=4 * 2**20))
    assert "4.0 MiB" in shown(benchmark(device=4 * 2**20))


def test_the_conclusion_says_what_was_possible_and_why_it_was_not_reached() -> None:
    (sentence,) = conclusions(benchmark())
    assert sentence == (
        "small against dense: prefill: 0.800 x the multiply-adds, ideally 1.25 x as fast, measured 1.25 x; decoding at "
        "batch 8: 0.800 x the bytes of weights, ideally 1.25 x as fast, measured 1.25 x (it makes 60 matrix products "
        "per token instead of 30, each with a fixed cost)."
    )
    (sentence,) = conclusions(benchmark(products=30))
    assert sentence.endswith("measured 1.25 x.")


def test_a_pair_can_be_taken_out_of_a_benchmark() -> None:
    found = benchmark()
    three = found.model_copy(update={"models": (*found.models, found.models[0])})
    assert against_first(three, 1) == found


def test_memory_that_was_not_measured_has_no_table() -> None:
    found = benchmark()
    models = tuple(model.model_copy(update={"memory": None}) for model in found.models)
    assert memory_table(found.model_copy(update={"models": models})) is None
