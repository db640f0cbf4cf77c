"""Two models side by side: perplexity, agreement, what they write; and one of them again, later.

The story of :func:`compare` and :func:`recheck`; the measures are in the modules beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_sharing.calibration.corpora import parse_source
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.errors import NumericalError, RecipeError, ResultError
from basis_sharing.evaluation.agreement import divergence, summarize
from basis_sharing.evaluation.intervals import loss_difference
from basis_sharing.evaluation.paired import task_differences
from basis_sharing.evaluation.perplexity import (
    DEFAULT_TEXT,
    from_losses,
    load,
    measure,
    prepare_text,
    window_length,
    window_logits,
    window_loss,
)
from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, continue_prompt, encode_prompts
from basis_sharing.evaluation.tasks import evaluate_tasks
from basis_sharing.evaluation.verdict import Missing, judge, refuse_unanswerable
from basis_sharing.models.source import dtype_name, named_dtype
from basis_sharing.progress import Progress, ProgressCallback, silent, titled
from basis_sharing.results.base import software_versions
from basis_sharing.results.comparison import (
    Agreement,
    Comparison,
    Continuation,
    Drift,
    Generation,
    Limits,
    Measured,
)
from basis_sharing.results.measures import Perplexity

_DISAGREEMENTS = 10
_ONE_MODEL = "the first model was not given: give both models beside the baseline"


@dataclass(frozen=True)
class _Side:
    """A loaded model."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        """Number of tokens the model predicts."""
        return int(self.model.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class _Task:
    """What is measured on the models, and how it is judged."""

    text: str
    windows: int | None
    length: int | None
    prompts: Sequence[str]
    new_tokens: int
    dtype: torch.dtype | None
    limits: Limits
    disagreements: int


def compare(
    a: str | Path | Any,
    b: str | Path | Any,
    *,
    text: str = DEFAULT_TEXT,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    limits: Limits | None = None,
    tokenizer: Any = None,
    windows: int | None = None,
    length: int | None = None,
    dtype: torch.dtype | None = None,
    new_tokens: int = NEW_TOKENS,
    disagreements: int = _DISAGREEMENTS,
    tasks: Sequence[str] = (),
    task_data: Path | None = None,
    task_limit: int | None = None,
    task_cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> Comparison:
    """Compare two models, usually an original and its compressed form, on one text and the same prompts.

    Both are in memory at once, the logits of one window only. Models with different vocabularies are compared by bits
    per byte and by what they write.

    Args:
        a: The original: a folder, a GGUF file, a hub id, or a model in memory.
        b: The model that is judged, given in the same way.
        text: Source of the text, as for calibration.
        prompts: Prompts that both continue, greedily and without a chat template.
        limits: How far apart the models may be; None: the verdict only describes.
        tokenizer: The tokenizer of models given in memory.
        windows: Use only the first windows; None: all.
        length: Tokens per window; None: 2048, or the limit of either model where that is smaller.
        dtype: Dtype to load the models in; None: the checkpoint's own. Ignored for models given in memory.
        new_tokens: Most tokens to write after each prompt.
        disagreements: Number of positions to show where the models disagree most.
        tasks: Zero-shot tasks to score both on, see :func:`~basis_sharing.evaluation.tasks.evaluate_tasks`.
        task_data: Folder with their examples; None: the harness fetches them.
        task_limit: Use only the first examples of each task; None: all.
        task_cache: Folder that scores are kept in and taken from; None: none.
        progress: Receives one event per window and per prompt.

    Returns:
        What was measured, with the verdict and everything needed to check the second model again.

    Raises:
        ModelError: A model cannot be loaded.
        CorpusError: The text cannot be read or is shorter than one window.
        RecipeError: A prompt is too long, or a limit needs a number that these two models do not have.
        NumericalError: A model computes NaN or infinity.
    """
    task = _Task(text, windows, length, prompts, new_tokens, dtype, limits or Limits(), disagreements)
    missing_drift = Missing(drift="there is no baseline to drift from: give one with --baseline FILE")
    refuse_unanswerable(task.limits, missing_drift)
    parse_source(text)  # a mistyped name is found before two models are loaded
    scored = []
    for name, model in (("A", a), ("B", b)) if tasks else ():
        results = evaluate_tasks(
            model,
            tasks,
            tokenizer=tokenizer,
            data=task_data,
            limit=task_limit,
            dtype=dtype,
            cache=task_cache,
            progress=titled(progress, name),
        )
        scored.append(results)
    found = _compare(_side(a, tokenizer, dtype), _side(b, tokenizer, dtype), task, None, progress)
    if not scored:
        return found
    notes = [note for results in scored for note in (*results.notes, *(n for s in results.scores for n in s.notes))]
    return found.model_copy(
        update={"tasks": task_differences(*scored), "notes": tuple(dict.fromkeys((*found.notes, *notes)))}
    )


def recheck(
    b: str | Path | Any,
    baseline: Comparison,
    *,
    original: str | Path | Any = None,
    source: str = "the baseline",
    text: str | None = None,
    limits: Limits | None = None,
    tokenizer: Any = None,
    disagreements: int = _DISAGREEMENTS,
    progress: ProgressCallback = silent,
) -> Comparison:
    """Measure the second model of a stored comparison again, on the same windows and prompts.

    Args:
        b: The model that is judged.
        baseline: The stored comparison.
        original: The first model; None: its stored numbers are used, and agreement is left out.
        source: Where the baseline was read; used in messages.
        text: Source of the text; None: as the baseline names it. It must give the same tokens.
        limits: How far apart the models may be; None: those of the baseline that can be judged.
        tokenizer: The tokenizer of models given in memory.
        disagreements: Number of positions to show where the models disagree most.
        progress: Receives one event per window and per prompt.

    Returns:
        A comparison with its ``drift``.

    Raises:
        ModelError: A model cannot be loaded.
        CorpusError: The text cannot be read or is shorter than one window.
        ResultError: The text or the tokenizer is not that of the baseline.
        RecipeError: A limit needs a number that this check does not have.
        NumericalError: A model computes NaN or infinity.
    """
    stored = baseline.second.perplexity
    task = _Task(
        text=stored.text if text is None else text,
        windows=stored.windows,
        length=stored.length,
        prompts=[generation.prompt for generation in baseline.generations],
        new_tokens=baseline.new_tokens,
        dtype=named_dtype(baseline.dtype),
        limits=limits or baseline.limits,
        disagreements=disagreements,
    )
    if original is not None:
        sides = _side(original, tokenizer, task.dtype), _side(b, tokenizer, task.dtype)
        return _compare(*sides, task, (source, baseline), progress)
    notes: tuple[str, ...] = ()
    missing = Missing(
        difference=None if baseline.difference else f"{source} holds no comparable perplexities", agreement=_ONE_MODEL
    )
    if limits is None:
        kept = task.limits.model_copy(update={"max_kl": None, "min_agreement": None})
        if kept != task.limits:
            notes = (f"the limits of {source} on divergence and agreement need both models and were not judged.",)
        task = replace(task, limits=kept)
    refuse_unanswerable(task.limits, missing)
    side = _side(b, tokenizer, task.dtype)
    prepared = _prepare(side, task, window_length(side.model.config, task.length))
    _refuse_other_windows(prepared, baseline, source)
    encoded = encode_prompts(side.model, side.tokenizer, task.prompts, task.new_tokens)
    now = measure(side.model, prepared, stage="measuring again", progress=progress)
    written = _write((side,), (encoded,), task.new_tokens, progress)
    generations = tuple(
        Generation(prompt=then.prompt, first=then.first, second=second)
        for then, (second,) in zip(baseline.generations, written, strict=True)
    )
    return _result(
        (baseline.first, Measured(model=side.name, perplexity=now)),
        paired=baseline.difference is not None,
        agreement=None,
        generations=generations,
        task=task,
        baseline=(source, baseline),
        first_is_stored=True,
        notes=notes,
    )


def _compare(
    first: _Side, second: _Side, task: _Task, baseline: tuple[str, Comparison] | None, progress: ProgressCallback
) -> Comparison:
    length = min(window_length(side.model.config, task.length) for side in (first, second))
    texts = _prepare(first, task, length), _prepare(second, task, length)
    if baseline is not None:
        _refuse_other_windows(texts[1], baseline[1], baseline[0])
    missing, notes = _obstacles(first, second, texts)
    refuse_unanswerable(task.limits, missing)
    encoded = [encode_prompts(side.model, side.tokenizer, task.prompts, task.new_tokens) for side in (first, second)]
    agreement = None
    if missing.agreement is None:
        measured, agreement = _measure_together(first, second, texts[0], task.disagreements, progress)
    else:
        measured = (
            measure(first.model, texts[0], stage="measuring A", progress=progress),
            measure(second.model, texts[1], stage="measuring B", progress=progress),
        )
    written = _write((first, second), encoded, task.new_tokens, progress)
    return _result(
        (
            Measured(model=first.name, perplexity=measured[0]),
            Measured(model=second.name, perplexity=measured[1]),
        ),
        paired=missing.difference is None,
        agreement=agreement,
        generations=tuple(
            Generation(prompt=prompt, first=one, second=other)
            for prompt, (one, other) in zip(task.prompts, written, strict=True)
        ),
        task=task,
        baseline=baseline,
        first_is_stored=False,
        notes=notes,
    )


def _side(model: str | Path | Any, tokenizer: Any, dtype: torch.dtype | None) -> _Side:
    if isinstance(model, (str, Path)):
        return _Side(str(model), *load(model, dtype))
    if tokenizer is None:
        raise RecipeError("the tokenizer of a model given in memory is missing: pass tokenizer=.")
    return _Side(type(model).__name__, model, tokenizer)


def _prepare(side: _Side, task: _Task, length: int) -> EvaluationText:
    return prepare_text(side.model, side.tokenizer, task.text, windows=task.windows, length=length)


def _refuse_other_windows(text: EvaluationText, baseline: Comparison, source: str) -> None:
    if text.fingerprint != baseline.second.perplexity.fingerprint:
        raise ResultError(
            f"{text.source} does not give the tokens that {source} was measured on: the text or the model's tokenizer "
            "is another one; give the text of then with --text, or make a new baseline."
        )


def _obstacles(
    first: _Side, second: _Side, texts: tuple[EvaluationText, EvaluationText]
) -> tuple[Missing, tuple[str, ...]]:
    """Return what cannot be compared and why, and the notes that a reader needs for the rest."""
    reason = None
    if first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        sizes = f"{len(first.tokenizer):,} and {len(second.tokenizer):,} tokens"
        reason = f"the two models have different vocabularies ({sizes})"
    elif texts[0].fingerprint != texts[1].fingerprint:
        reason = "the two models' tokenizers turn the text into different tokens"
    if reason is not None:
        rest = "bits per byte and generations" if texts[0].bytes_per_token is not None else "only the generations"
        note = f"{reason}: {rest} are compared; perplexity per token, divergence and agreement are not comparable."
        if texts[0].bytes_per_token is not None:
            note += " Windows of as many tokens cover different stretches of the text: use all of it (no --windows)."
        return Missing(difference=reason, agreement=reason), (note,)
    if first.vocabulary != second.vocabulary:
        reason = f"the two models predict {first.vocabulary:,} and {second.vocabulary:,} tokens"
        return Missing(agreement=reason), (f"{reason}: divergence and agreement are left out.",)
    return Missing(), ()


@torch.no_grad()
def _measure_together(
    first: _Side, second: _Side, text: EvaluationText, disagreements: int, progress: ProgressCallback
) -> tuple[tuple[Perplexity, Perplexity], Agreement]:
    """Run both models window by window, so that only the logits of one window are in memory."""
    windows, losses = [], (list[float](), list[float]())
    for index in range(len(text.input_ids)):
        logits = window_logits(first.model, text, index), window_logits(second.model, text, index)
        for side, own, part in zip((first, second), losses, logits, strict=True):
            try:
                own.append(window_loss(part, text, index))
            except NumericalError as error:
                raise NumericalError(f"{side.name}: {error}") from None
        windows.append(divergence(*logits))
        if not windows[-1].kl.isfinite().all():
            raise NumericalError(
                f"the models' predictions on window {index + 1} of {text.source} have no finite KL divergence: one "
                "computes NaN or infinity; run both in float32 (--dtype float32)."
            )
        progress(Progress("comparing", index + 1, len(text.input_ids), "windows"))
    agreement = summarize(windows, text.input_ids, first.tokenizer, disagreements)
    one, other = (from_losses(own, text, side.model.dtype) for own, side in zip(losses, (first, second), strict=True))
    return (one, other), agreement


def _write(
    sides: Sequence[_Side], encoded: Sequence[Sequence[Tensor]], new_tokens: int, progress: ProgressCallback
) -> list[tuple[Continuation, ...]]:
    """Let every model continue its prompts; one tuple per prompt, in the order of the models."""
    written = []
    prompts = list(zip(*encoded, strict=True))
    for done, prompt in enumerate(prompts, start=1):
        written.append(
            tuple(
                continue_prompt(side.model, side.tokenizer, ids, new_tokens)
                for side, ids in zip(sides, prompt, strict=True)
            )
        )
        progress(Progress("writing", done, len(prompts), "prompts"))
    return written


def _result(
    measured: tuple[Measured, Measured],
    *,
    paired: bool,
    agreement: Agreement | None,
    generations: tuple[Generation, ...],
    task: _Task,
    baseline: tuple[str, Comparison] | None,
    first_is_stored: bool,
    notes: tuple[str, ...],
) -> Comparison:
    first, second = measured
    versions = software_versions()
    difference = None
    if paired:
        difference = loss_difference(first.perplexity.window_nats, second.perplexity.window_nats)
    drift = None
    if baseline is not None:
        drift = _drift(*baseline, second, generations)
        notes += _changed_conditions(drift, second, versions)
    silence = (
        _silence("A", [generation.first for generation in generations]),
        _silence("B", [generation.second for generation in generations]),
    )
    notes += (*first.perplexity.notes, *second.perplexity.notes, *(note for note in silence if note))
    return Comparison(
        first=first,
        second=second,
        difference=difference,
        agreement=agreement,
        generations=generations,
        new_tokens=task.new_tokens,
        dtype="auto" if task.dtype is None else dtype_name(task.dtype),
        limits=task.limits,
        verdict=judge(task.limits, first, second, difference, agreement, drift),
        drift=drift,
        first_is_stored=first_is_stored,
        notes=tuple(dict.fromkeys(notes)),
        versions=versions,
    )


def _drift(source: str, baseline: Comparison, now: Measured, generations: Sequence[Generation]) -> Drift:
    then = baseline.second
    pairs = zip(baseline.generations, generations, strict=True)
    return Drift(
        baseline=source,
        stored=then,
        difference=loss_difference(then.perplexity.window_nats, now.perplexity.window_nats),
        changed_generations=sum(old.second.text != new.second.text for old, new in pairs),
        versions=baseline.versions,
    )


def _changed_conditions(drift: Drift, now: Measured, versions: dict[str, str]) -> tuple[str, ...]:
    then, notes = drift.stored.perplexity, []
    if then.dtype != now.perplexity.dtype:
        notes.append(f"B ran in {then.dtype} for {drift.baseline}, and in {now.perplexity.dtype} now.")
    for name, number in versions.items():
        if drift.versions.get(name, number) != number:
            notes.append(f"{drift.baseline} was measured with {name} {drift.versions[name]}, this with {number}.")
    return tuple(notes)


def _silence(name: str, continuations: Sequence[Continuation]) -> str | None:
    silent_ones = sum(continuation.tokens == 0 for continuation in continuations)
    if not silent_ones:
        return None
    return f"{name} generates only end-of-text after {silent_ones} of {len(continuations)} prompts."
