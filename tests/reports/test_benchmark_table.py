from rich.console import Console

from basis_sharing.benchmark.turns import paired_speed, spread
from basis_sharing.reports.benchmark_table import benchmark_table, conclusions
from basis_sharing.results.benchmark import (
    BenchmarkedModel,
    BenchmarkResult,
    BenchmarkSettings,
    PeakMemory,
    Timing,
    Work,
)

DENSE = (0.2, 0.21, 0.22)
ROWS = (("prefill", "eager", 1), ("first token", "eager", 1), ("decode", "eager", 8), ("decode", "compiled", 8))


def model(label, seconds, ideal, work, device=None):
    return BenchmarkedModel(
        model=f"models/{label}",
        label=label,
        dtype="float32",
        parameters=1000,
        bytes_in_memory=3 * 2**20,
        bytes_on_disk=2**20,
        work=work,
        memory=PeakMemory(libraries=0, loading=5 * 2**20, running=7 * 2**20, device=device),
        timings=tuple(
            Timing(
                workload=workload,
                execution=execution,
                batch=batch,
                seconds=seconds,
                time=spread(seconds),
                speed=paired_speed(DENSE, seconds),
                ideal_speed=ideal,
            )
            for workload, execution, batch in ROWS
        ),
    )


def result(device=None, products=60):
    first = Work(
        prefill_multiply_adds=100, first_token_multiply_adds=90, weight_bytes_per_step=80, products_per_step=30
    )
    other = first.model_copy(update={"products_per_step": products})
    return BenchmarkResult(
        settings=BenchmarkSettings(
            prompt_tokens=512,
            new_tokens=32,
            batch_sizes=(8,),
            repeats=3,
            compiled=True,
            memory=True,
            dtype="auto",
            device="cpu",
            seed=0,
        ),
        device_name="A Processor",
        threads=2,
        models=(model("dense", DENSE, 1.0, first, device), model("small", (0.16, 0.14, 0.2), 1.25, other, device)),
        notes=("something is unusual",),
        versions={},
    )


def shown(found):
    console = Console(width=120, record=True)
    console.print(benchmark_table(found))
    return console.export_text()


def test_tables_hold_every_number():
    text = shown(result())
    for words in (
        "cpu (A Processor), 2 threads; prompts of 512 random tokens, 32 new ones",
        "5.0 MiB",
        "7.0 MiB",
        "210.0 (205.0 - 215.0)",
        "2,438",  # 512 tokens in 0.21 s
        "1.25 x (1.17 - 1.38)",
        "decode, batch 8, compiled",
        "note: something is unusual",
    ):
        assert words in text
    assert "peak on" not in text
    assert "4.0 MiB" in shown(result(device=4 * 2**20))


def test_the_conclusion_says_what_was_possible_and_why_it_was_not_reached():
    (sentence,) = conclusions(result())
    assert sentence == (
        "small against dense: prefill: 0.800 x the multiply-adds, ideally 1.25 x as fast, measured 1.25 x; decoding at "
        "batch 8: 0.800 x the bytes of weights, ideally 1.25 x as fast, measured 1.25 x (it makes 60 matrix products "
        "per token instead of 30, each with a fixed cost)."
    )
    (sentence,) = conclusions(result(products=30))
    assert sentence.endswith("measured 1.25 x.")
