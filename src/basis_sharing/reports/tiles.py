"""The top of a report: a summary in one or two sentences, and the main numbers."""

from dataclasses import dataclass

from basis_sharing.reports.material import Material
from basis_sharing.reports.tables.benchmark import timing_like
from basis_sharing.reports.tables.cells import percent, quotient, size, times
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkResult
from basis_sharing.results.words import amount_of_bytes, change, short_name, without_folders


@dataclass(frozen=True)
class Tile:
    """One of the main numbers.

    Attributes:
        name: Name of the number.
        change: Its change, e.g. ``"-18.0 %"``.
        detail: The values before and after.
    """

    name: str
    change: str
    detail: str


def answer(material: Material) -> str:
    """Return one or two sentences about the saved size and the cost in perplexity."""
    result = material.result
    fewer = 1 - result.after.parameters / result.before.parameters
    saved = result.before.bytes_in_memory - result.after.bytes_in_memory
    rounded = f"the numbers of {material.original} in fewer bits"
    has = f"{percent(fewer)} fewer parameters than {material.original}" if fewer else rounded
    gain = f"{material.name} has {has} and needs {amount_of_bytes(saved)} less memory"
    if not material.perplexities:
        return f"{gain}. What that costs in quality was not measured: compress with --evaluate, or use compare."
    dense, small = material.perplexities[0]
    return (
        f"{gain}; its perplexity on {without_folders(dense.text)} is {small.perplexity:,.3f} instead of "
        f"{dense.perplexity:,.3f}, {small.perplexity / dense.perplexity:.3f} times as high."
    )


def tiles(material: Material) -> list[Tile]:
    """Return the main numbers: size, quality, speed."""
    before, after = material.result.before, material.result.after
    on_disk = None if material.result.original_is_quantized else before.bytes_on_disk
    shown = [
        Tile(
            "parameters", change(before.parameters, after.parameters), f"{before.parameters:,} -> {after.parameters:,}"
        ),
        _bytes_tile("memory of the weights", before.bytes_in_memory, after.bytes_in_memory),
    ]
    if on_disk is not None and after.bytes_on_disk is not None:
        shown.append(_bytes_tile("files on disk", on_disk, after.bytes_on_disk))
    for dense, small in material.perplexities:
        shown.append(
            Tile(
                f"perplexity, {without_folders(dense.text)}",
                quotient(small.perplexity, dense.perplexity, 3),
                f"{dense.perplexity:,.3f} -> {small.perplexity:,.3f}",
            )
        )
    for comparison in material.comparisons:
        agreement = comparison.agreement
        if agreement is not None:
            detail = f"KL divergence {agreement.mean_kl:.4f} nats per token"
            shown.append(Tile("same next token", percent(agreement.top1), detail))
    return shown + [tile for benchmark in material.benchmarks for tile in _speed_tiles(benchmark, material.name)]


def compressed_index(benchmark: BenchmarkResult, name: str) -> int:
    """Return the index of the compressed folder among the models of a benchmark, whose first one is the original."""
    return next(i for i, model in enumerate(benchmark.models) if i and short_name(model.model) == name)


def _speed_tiles(benchmark: BenchmarkResult, name: str) -> list[Tile]:
    original: BenchmarkedModel = benchmark.models[0]
    compressed = benchmark.models[compressed_index(benchmark, name)]
    shown = []
    for timing in (compressed.as_served("prefill", "first token"), compressed.as_served("decode")):
        what = f"decoding, batch {timing.batch}" if timing.workload == "decode" else "prompt"
        before, after = timing_like(original, timing).time.median, timing.time.median
        shown.append(Tile(f"speed, {what}", times(timing.speed.median), f"{_seconds(before)} -> {_seconds(after)}"))
    return shown


def _bytes_tile(name: str, before: int, after: int) -> Tile:
    return Tile(name, change(before, after), f"{size(before)} -> {size(after)}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
