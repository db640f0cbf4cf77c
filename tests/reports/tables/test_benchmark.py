"""What a person reads of a benchmark."""

from io import StringIO

from rich.console import Console

from basis_sharing.reports.tables.benchmark import against_first, benchmark_tables, conclusions, memory_table
from basis_sharing.reports.terminal import printable
from basis_sharing.results.benchmark import BenchmarkResult, PredictedPrefill, PredictedSpeeds
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
        "Warm-up (compiling, first touches), in none of the times: dense 6.0 s, small 6.0 s.",
        "note: something is unusual",
    ):
        assert words in text
    assert "on the device" not in text
    assert "predicted" not in text.lower()
    assert "on the device" in shown(benchmark(device=4 * 2**20))
    assert "4.0 MiB" in shown(benchmark(device=4 * 2**20))


def test_the_conclusion_says_what_was_possible_and_why_it_was_not_reached() -> None:
    (sentence,) = conclusions(benchmark())
    assert sentence == (
        "small against dense: prefill: 0.800 x the multiply-adds, ideally 1.25 x as fast, measured 1.25 x; compiled "
        "decoding at batch 8: 0.800 x the bytes of weights, ideally 1.25 x as fast, measured 1.25 x (it makes "
        "60 matrix products per token instead of 30, each with a fixed cost)."
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


def test_a_predicted_speed_stands_beside_the_measured_one() -> None:
    found = benchmark()
    predicted = PredictedSpeeds(prefill=PredictedPrefill(tokens=512, speed=1.31))
    first, second = found.models
    models = (first, second.model_copy(update={"predicted": predicted}))
    text = shown(found.model_copy(update={"models": models}))
    assert "1.25 x (1.17 to 1.38) 1.31 x" in text
    assert "Predicted: by the plan, against the original." in text
    assert text.count("1.31 x") == 2  # the prefill, and the first token of the same prompt


def test_results_of_vllm_have_tables_too() -> None:
    found = benchmark()
    models = tuple(
        model.model_copy(
            update={"timings": tuple(t.model_copy(update={"execution": "vllm"}) for t in model.timings[1:3])}
        )
        for model in found.models
    )
    settings = found.settings.model_copy(update={"engine": "vllm"})
    result = found.model_copy(update={"models": models, "settings": settings})
    text = shown(result)
    assert "cpu (A Processor) in vLLM, 2 threads" in text
    assert "small against dense: first token: 0.800 x the multiply-adds" in text


def test_results_of_earlier_versions_know_no_warm_up() -> None:
    found = benchmark()
    models = tuple(
        model.model_copy(update={"timings": tuple(t.model_copy(update={"warm_up": None}) for t in model.timings)})
        for model in found.models
    )
    assert "Warm-up" not in shown(found.model_copy(update={"models": models}))
