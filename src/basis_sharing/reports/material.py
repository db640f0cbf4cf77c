"""The material of a report: a compressed folder's own result, and files of results about the same model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basis_sharing.errors import ResultError
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.source import fingerprint, resolve
from basis_sharing.reports.layout import Layout, layout_of
from basis_sharing.results.base import kind_of
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.evaluation import EvaluationResult
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.rollout import Rollout
from basis_sharing.results.tasks import TaskResults
from basis_sharing.results.words import short_name

_KINDS = ("comparison", "benchmark", "evaluation", "tasks", "compression", "rollout")


@dataclass(frozen=True)
class Material:
    """All results that a report shows.

    Attributes:
        name: Name of the compressed folder.
        original: Short name of the original.
        result: The result of the compression.
        layout: The projections and the sizes of the parts of the compressed model.
        comparisons: Comparisons of the original with the compressed model.
        benchmarks: Benchmarks of both models.
        tasks_before: Task scores of the original.
        tasks_after: Task scores of the compressed model.
        others: Other compressions of the same original, by name.
        rollouts: Staged rollouts of the same original.
    """

    name: str
    original: str
    result: CompressionResult
    layout: Layout
    comparisons: tuple[Comparison, ...]
    benchmarks: tuple[BenchmarkResult, ...]
    tasks_before: tuple[TaskResults, ...]
    tasks_after: tuple[TaskResults, ...]
    others: tuple[tuple[str, CompressionResult], ...]
    rollouts: tuple[Rollout, ...]

    @property
    def perplexities(self) -> tuple[tuple[Perplexity, Perplexity], ...]:
        """Perplexities of the original and of the compressed model, from its compression and from comparisons."""
        measured = list(zip(self.result.perplexity_before, self.result.perplexity_after, strict=True))
        compared = [(c.first.perplexity, c.second.perplexity) for c in self.comparisons if c.difference is not None]
        known = {dense.fingerprint for dense, _ in measured}
        return (*measured, *(pair for pair in compared if pair[0].fingerprint not in known))


def gather(folder: Path, files: Sequence[Path]) -> Material:
    """Return the material in a compressed folder and in files of results about it.

    Raises:
        ModelError: The folder's configuration cannot be read.
        ResultError: The folder is not a compressed one; or a file cannot be read, is of a kind that a report does not
            show, or is about another model.
    """
    result = _own_result(folder)
    layout = layout_of(folder, result)
    name = short_name(str(folder.absolute()))
    comparisons: list[Comparison] = []
    benchmarks: list[BenchmarkResult] = []
    before: list[TaskResults] = []
    after: list[TaskResults] = []
    others: list[tuple[str, CompressionResult]] = []
    rollouts: list[Rollout] = []
    for file in files:
        kind = kind_of(file)
        if kind == "comparison":
            comparison = Comparison.read(file)
            _same_models(file, comparison, name, result)
            comparisons.append(comparison)
        elif kind == "benchmark":
            benchmark = BenchmarkResult.read(file)
            _takes_part(file, benchmark, name, result)
            benchmarks.append(benchmark)
        elif kind in ("tasks", "evaluation"):
            tasks = TaskResults.read(file) if kind == "tasks" else _tasks_in(file)
            (before if _is_original(file, tasks, folder, result) else after).append(tasks)
        elif kind == "compression":
            others.append(_other(file, result))
        elif kind == "rollout":
            rollouts.append(_rollout(file, result))
        else:
            raise ResultError(f"{file} holds the results of a {kind}; a report shows those of: {', '.join(_KINDS)}.")
    return Material(
        name=name,
        original=short_name(result.model),
        result=result,
        layout=layout,
        comparisons=tuple(comparisons),
        benchmarks=tuple(benchmarks),
        tasks_before=tuple(before),
        tasks_after=tuple(after),
        others=tuple(others),
        rollouts=tuple(rollouts),
    )


def _tasks_in(file: Path) -> TaskResults:
    evaluation = EvaluationResult.read(file)
    if evaluation.tasks is None:
        raise ResultError(
            f"{file} holds perplexities only, and a report shows those of a comparison: give the results of "
            "`basis-sharing compare -o`, or evaluate with --tasks."
        )
    return evaluation.tasks


def _own_result(folder: Path) -> CompressionResult:
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise ResultError(f"{folder} {what}: give the folder that `basis-sharing compress` wrote.")
    if not (folder / RESULT_FILE).is_file():
        raise ResultError(
            f"{folder} holds no {RESULT_FILE}: give a folder that `basis-sharing compress` wrote, not the original."
        )
    result = CompressionResult.read(folder / RESULT_FILE)
    config = folder / "config.json"
    try:
        compressed = is_compressed(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ResultError(f"{config} is missing or damaged: compress again.") from None
    if not compressed:
        raise ResultError(f"{folder} holds {RESULT_FILE}, but its config.json is not compressed: compress again.")
    return result


def _same_models(file: Path, comparison: Comparison, name: str, result: CompressionResult) -> None:
    first, second = short_name(comparison.first.model), short_name(comparison.second.model)
    if second != name:
        raise ResultError(
            f"{file} compares {first} with {second}, not with {name}: give a comparison of the original with this "
            "folder, in this order."
        )
    _same_original(file, first, result)


def _takes_part(file: Path, benchmark: BenchmarkResult, name: str, result: CompressionResult) -> None:
    names = [short_name(model.model) for model in benchmark.models]
    if name not in names[1:]:
        raise ResultError(
            f"{file} is a benchmark of {', '.join(names)}, without {name} beside the original: give one of the "
            "original and this folder, in this order."
        )
    _same_original(file, names[0], result)


def _same_original(file: Path, first: str, result: CompressionResult) -> None:
    if result.model_fingerprint is not None and first != short_name(result.model):
        raise ResultError(
            f"{file} measures against {first}, but this folder was made from {short_name(result.model)}: give results "
            "against the same original."
        )


def _is_original(file: Path, tasks: TaskResults, folder: Path, result: CompressionResult) -> bool:
    """Return whether task scores are those of the original; otherwise they are those of the compressed folder.

    Raises:
        ResultError: They are of neither.
    """
    if tasks.model_fingerprint is not None:
        if tasks.model_fingerprint == result.model_fingerprint:
            return True
        if tasks.model_fingerprint == fingerprint(resolve(folder)):
            return False
    raise ResultError(
        f"{file} holds the scores of {short_name(tasks.model)}, whose weights are neither those of this folder nor of "
        "its original: measure again."
    )


def _rollout(file: Path, result: CompressionResult) -> Rollout:
    rollout = Rollout.read(file)
    if result.model_fingerprint is None or rollout.settings.model_fingerprint != result.model_fingerprint:
        raise ResultError(
            f"{file} is a rollout of {short_name(rollout.settings.model)}, with other weights than this folder's "
            "original: give the one that this folder comes from."
        )
    if not rollout.steps:
        raise ResultError(f"{file} has no step yet: resume the rollout first.")
    return rollout


def _other(file: Path, result: CompressionResult) -> tuple[str, CompressionResult]:
    other = CompressionResult.read(file)
    if other == result:
        raise ResultError(f"{file} holds the results of the folder itself: leave it out.")
    if other.model_fingerprint is None or other.model_fingerprint != result.model_fingerprint:
        raise ResultError(
            f"{file} is of a compression of {short_name(other.model)}, with other weights than this folder's original: "
            "give results of the same original."
        )
    return f"{other.method}, {100 * other.ratio_reached:.0f} % less", other
