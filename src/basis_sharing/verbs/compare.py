"""``compare``: perplexity, agreement, generations and tasks of two models, or of one model and a stored comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from basis_sharing.calibration.corpora import parse_source
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.comparing import compare_sides, compare_with_stored
from basis_sharing.evaluation.measuring import Loading, Scoring, check_least
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, read_prompts
from basis_sharing.evaluation.sides import Baseline, ComparisonTask, load_side
from basis_sharing.evaluation.verdict import Missing, refuse_unanswerable
from basis_sharing.recipe.model import DtypeName
from basis_sharing.results.comparison import Comparison, Limits
from basis_sharing.results.paired import shared_notes, task_differences
from basis_sharing.run.progress import ProgressCallback, silent, titled


def compare(
    *models: str | Path | Any,
    baseline: str | Path | Comparison | None = None,
    text: str | None = None,
    evaluation_windows: int | None = None,
    length: int | None = None,
    prompts: Sequence[str] | Path | None = None,
    new_tokens: int | None = None,
    disagreements: int = 10,
    limits: Limits | None = None,
    tokenizer: Any = None,
    dtype: DtypeName = "auto",
    device: str | None = None,
    tasks: str | Sequence[str] = (),
    task_data: str | Path | None = None,
    limit: int | None = None,
    cache: bool = True,
    progress: ProgressCallback = silent,
) -> Comparison:
    """Compare two models, usually an original and its compressed form, on one text and the same prompts.

    Args:
        *models: The original, and the model to judge; with ``baseline`` the latter suffices.
        baseline: A stored comparison to repeat; it sets windows, length, prompts, dtype and tasks.
        text: The text, named as for calibration; None: ``python-docs:heldout``, or as in the baseline.
        evaluation_windows: Use only the first windows; None: all.
        length: Tokens per window; None: 2048, or the limit of either model where that is smaller.
        prompts: Prompts that both continue, greedily and without a chat template, or a file with one a line.
        new_tokens: Most tokens to write after each prompt; None: 40.
        disagreements: Number of positions to report where the models disagree most.
        limits: How far apart the models may be; None: none, or those of the baseline that can be judged.
        tokenizer: The tokenizer of models given in memory.
        dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``; not for models in memory.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; None: where a model in memory is, else ``"auto"``.
        tasks: Zero-shot tasks to score both on, as for ``evaluate``.
        task_data: Folder with their examples; None: the harness fetches them.
        limit: Use only the first examples of each task; None: all.
        cache: Keep task scores in the user's cache folder and take them from there.
        progress: Receives one event per window and per prompt.

    Returns:
        What was measured, with the verdict and everything needed to check the second model again.

    Raises:
        BasisSharingError: A setting, model or text cannot be used, or a limit cannot be judged.

    Example:
        >>> limits = basis_sharing.Limits(max_perplexity_increase=0.05)
        >>> result = basis_sharing.compare("./llama", "./llama-20", text="heldout.txt", limits=limits)
        >>> print(result.verdict.sentence)
    """
    against = None if baseline is None else Baseline.of(baseline)
    loading, scoring = Loading(tokenizer, dtype, device), Scoring(tasks, task_data, limit, cache)
    settings = _Settings(text, evaluation_windows, length, prompts, new_tokens, disagreements, limits)
    _check(models, settings, loading, scoring, against)
    with loading.placed(*models):
        return _comparison(models, settings, loading, scoring, against, progress)


@dataclass(frozen=True)
class _Settings:
    """The arguments of :func:`compare` about the measurements; None: not given."""

    text: str | None
    evaluation_windows: int | None
    length: int | None
    prompts: Sequence[str] | Path | None
    new_tokens: int | None
    disagreements: int
    limits: Limits | None

    def task(self, dtype: str) -> ComparisonTask:
        """Return the task of a comparison without a baseline."""
        prompts = DEFAULT_PROMPTS if self.prompts is None else self.prompts
        return ComparisonTask(
            text=self.text or DEFAULT_TEXT,
            evaluation_windows=self.evaluation_windows,
            length=self.length,
            prompts=read_prompts(Path(prompts)) if isinstance(prompts, (str, Path)) else prompts,
            new_tokens=self.new_tokens or NEW_TOKENS,
            disagreements=self.disagreements,
            dtype=dtype,
            limits=self.limits or Limits(),
        )

    def task_of(self, baseline: Baseline) -> ComparisonTask:
        """Return the task of a comparison that repeats a baseline."""
        then = baseline.comparison
        return ComparisonTask(
            text=self.text or then.second.perplexity.text,
            evaluation_windows=then.second.perplexity.windows,
            length=then.second.perplexity.length,
            prompts=[generation.prompt for generation in then.generations],
            new_tokens=then.new_tokens,
            disagreements=self.disagreements,
            dtype=then.dtype,
            limits=self.limits or then.limits,
        )


def _check(
    models: Sequence[Any], settings: _Settings, loading: Loading, scoring: Scoring, baseline: Baseline | None
) -> None:
    """Check the arguments before a model is loaded.

    Raises:
        RecipeError: A setting is wrong, contradicts another one, or a limit cannot be judged.
        CorpusError: There is no such text.
    """
    if len(models) > 2 or len(models) < (2 if baseline is None else 1):
        raise RecipeError(f"two models are needed, and {len(models)} given: basis-sharing compare ORIGINAL COMPRESSED.")
    loading.check()
    check_least(
        {
            "evaluation_windows": (settings.evaluation_windows, 1),
            "length": (settings.length, 2),
            "new_tokens": (settings.new_tokens, 1),
            "disagreements": (settings.disagreements, 0),
        }
    )
    scoring.check()
    fixed = {
        "tasks": scoring.asked,
        "evaluation-windows": settings.evaluation_windows is not None,
        "length": settings.length is not None,
        "dtype": loading.dtype != "auto",
        "prompts": settings.prompts is not None,
        "new-tokens": settings.new_tokens is not None,
    }
    for name, given in fixed.items():
        if baseline is not None and given:
            raise RecipeError(f"--{name} has no meaning with --baseline, which says what is measured: leave one out.")
    if baseline is None:
        missing = Missing(drift="there is no baseline to drift from: give one with --baseline FILE")
        refuse_unanswerable(settings.limits or Limits(), missing)
    if settings.text is not None:
        parse_source(settings.text)


def _comparison(
    models: Sequence[Any],
    settings: _Settings,
    loading: Loading,
    scoring: Scoring,
    baseline: Baseline | None,
    progress: ProgressCallback,
) -> Comparison:
    """Return the first comparison of two models, or the repetition of a baseline."""
    if baseline is None:
        return _compare_first(models, settings.task(loading.dtype), loading, scoring, progress)
    return _compare_again(models, settings, replace(loading, dtype=baseline.comparison.dtype), baseline, progress)


def _compare_first(
    models: Sequence[Any], task: ComparisonTask, loading: Loading, scoring: Scoring, progress: ProgressCallback
) -> Comparison:
    """Return the comparison of two models; tasks are scored first, so that a wrong name or file fails early."""
    first, second = models
    scored = [
        scoring.score(model, loading, titled(progress, name))
        for name, model in (("A", first), ("B", second))
        if scoring.asked
    ]
    comparison = compare_sides(load_side(first, loading), load_side(second, loading), task, None, progress)
    if not scored:
        return comparison
    notes = dict.fromkeys((*comparison.notes, *shared_notes(*scored)))
    return comparison.model_copy(update={"tasks": task_differences(*scored), "notes": tuple(notes)})


def _compare_again(
    models: Sequence[Any], settings: _Settings, loading: Loading, baseline: Baseline, progress: ProgressCallback
) -> Comparison:
    """Return the comparison that repeats a baseline with the second model, and with the first one if it is given.

    Raises:
        RecipeError: A limit cannot be judged.
    """
    task = settings.task_of(baseline)
    if len(models) == 2:
        first, second = (load_side(model, loading) for model in models)
        return compare_sides(first, second, task, baseline, progress)
    notes: tuple[str, ...] = ()
    if settings.limits is None:  # use the baseline's limits that can be judged with one model
        kept = task.limits.model_copy(update={"max_kl": None, "min_agreement": None})
        if kept != task.limits:
            source = baseline.source
            notes = (f"the limits of {source} on divergence and agreement need both models and were not judged.",)
        task = replace(task, limits=kept)
    comparable = baseline.comparison.difference is not None
    missing = Missing(
        difference=None if comparable else f"{baseline.source} holds no comparable perplexities",
        agreement="the first model was not given: give both models beside the baseline",
    )
    refuse_unanswerable(task.limits, missing)
    return compare_with_stored(load_side(models[0], loading), task, baseline, notes, progress)
