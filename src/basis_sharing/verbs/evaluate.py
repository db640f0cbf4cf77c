"""``evaluate``: perplexity of a model on texts, and its accuracy on zero-shot tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.measuring import Loading, Scoring, check_least
from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, measure, prepare_text
from basis_sharing.recipe.model import DtypeName
from basis_sharing.results.evaluation import EvaluationResult
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.versions import software_versions


def evaluate(
    model: str | Path | Any,
    text: str | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    evaluation_windows: int | None = None,
    length: int | None = None,
    dtype: DtypeName = "auto",
    device: str | None = None,
    tasks: str | Sequence[str] = (),
    task_data: str | Path | None = None,
    limit: int | None = None,
    cache: bool = True,
    progress: ProgressCallback = silent,
) -> EvaluationResult:
    """Measure perplexity and bits per byte of a model, dense or compressed, or its accuracy on zero-shot tasks.

    Args:
        model: A folder, a GGUF file, a hub id, or a model in memory.
        text: One text or several, named as for calibration; None: ``python-docs:heldout``, or none with ``tasks``.
        tokenizer: The tokenizer of a model given in memory; not needed for files of token windows.
        evaluation_windows: Use only the first windows of each text; None: all.
        length: Tokens per window; None: 2048, or the model's limit where that is smaller.
        dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``; not for models in memory.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; None: that of a model in memory, else ``"auto"``.
        tasks: Tasks of lm-evaluation-harness, e.g. ``("arc_easy", "piqa")``; ``"paper"``: the seven of the paper.
        task_data: Folder with the examples of the tasks; None: the harness fetches them from the hub.
        limit: Use only the first examples of each task; None: all.
        cache: Read and keep task scores in the user's cache folder; not for models in memory.
        progress: Receives one event per window and per batch of answers.

    Returns:
        One perplexity per text and the task scores, with everything needed to repeat them.

    Raises:
        BasisSharingError: A setting, the model, a text or a task cannot be used, or the model computes NaN.

    Example:
        >>> result = basis_sharing.evaluate("./llama-20", "heldout.txt")
        >>> print(result.perplexity, result.perplexities[0].bits_per_byte)
    """
    loading, scoring = Loading(tokenizer, dtype, device), Scoring(tasks, task_data, limit, cache)
    texts = _checked_texts(text, evaluation_windows, length, loading, scoring)
    with loading.placed(model):
        scored = scoring.score(model, loading, progress) if scoring.asked else None
        measured = _perplexities(model, texts, evaluation_windows, length, loading, progress) if texts else ()
    name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    return EvaluationResult(model=name, perplexities=measured, tasks=scored, versions=software_versions())


def _checked_texts(
    text: str | Sequence[str] | None, windows: int | None, length: int | None, loading: Loading, scoring: Scoring
) -> list[str]:
    """Return the texts to measure perplexity on; empty if only tasks are scored.

    Raises:
        RecipeError: A setting is wrong, or has no meaning without another one.
        CorpusError: There is no such text.
    """
    loading.check()
    check_least({"evaluation_windows": (windows, 1), "length": (length, 2)})
    scoring.check()
    if scoring.asked and not text and (windows is not None or length is not None):
        raise RecipeError("--evaluation-windows and --length are about a text: name one with --text.")
    if not text:
        return [] if scoring.asked else [DEFAULT_TEXT]
    texts = [text] if isinstance(text, str) else list(text)
    parse_texts(None, texts)  # a mistyped name fails before the model is loaded
    return texts


def _perplexities(
    model: str | Path | Any,
    texts: Sequence[str],
    windows: int | None,
    length: int | None,
    loading: Loading,
    progress: ProgressCallback,
) -> tuple[Perplexity, ...]:
    loaded, tokenizer = loading.load(model)
    return tuple(
        measure(
            loaded,
            prepare_text(loaded, tokenizer, source, windows=windows, length=length),
            stage=f"evaluating {source}",
            progress=progress,
        )
        for source in texts
    )
