"""``recover``: train a compressed model, and write it as a folder of the same structure and size."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from basis_sharing.calibration.corpora import parse_texts
from basis_sharing.calibration.text import windows_of
from basis_sharing.calibration.windows import TokenWindows
from basis_sharing.checkpoint.folder import compressed_source
from basis_sharing.checkpoint.stage import Write
from basis_sharing.checkpoint.writer import check_space, publish, reserve
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.evaluation.check import CheckResult, RunWindow
from basis_sharing.evaluation.stage import Evaluate, prepared_texts
from basis_sharing.models.decoder import describe
from basis_sharing.models.multimodal import towers
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import (
    ModelSource,
    fingerprint,
    load_model,
    load_skeleton,
    load_tokenizer,
    resolve,
)
from basis_sharing.recipe.evaluation import Evaluation
from basis_sharing.recipe.recovery import RecoveryKeywords, RecoverySettings
from basis_sharing.repair.whole_training import Recovery, TrainingOutcome, TrainingSchedule
from basis_sharing.reports.card import write_result
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.recovery import RecoveryReport
from basis_sharing.run.durable import load_or_create
from basis_sharing.run.files import output_errors
from basis_sharing.run.machine import Machine, choose, default_dtype
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.run.versions import software_versions
from basis_sharing.run.work import same_run, work_beside
from basis_sharing.runtime.experts_basis_sharing import NarrowExperts
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear

_HELD_OUT, _MOST_HELD_OUT = 16, 8
_EVALUATIONS = 4  # most evaluations during training; few, because the first steps raise the loss before it falls
_EVALUATING = 0.25  # largest share of the minutes


def recover(
    folder: str | Path,
    output: str | Path,
    recovery: RecoverySettings | None = None,
    *,
    original: str | Path | None = None,
    evaluate: tuple[str, ...] = (),
    evaluation_windows: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    **settings: Unpack[RecoveryKeywords],
) -> CompressionResult:
    """Train a compressed model on a text, and write it as a folder of the same structure and size.

    After an interruption the same call resumes the training from files beside ``output``, which are removed at the
    end.

    Args:
        folder: A compressed folder; it is not changed.
        output: Folder for the recovered model.
        recovery: The settings; None: those of the preset, with ``settings``.
        original: The model it was made from, as teacher of a distillation; None: the one named in its result.
        evaluate: Texts on which perplexity is measured before and after.
        evaluation_windows: Number of windows per text; None: all.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``; None: ``"auto"``.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives progress events.
        **settings: Settings of :class:`~basis_sharing.recipe.recovery.RecoverySettings`, e.g. ``minutes=30``.

    Returns:
        The result of the compression, with a report of the recovery.

    Raises:
        BasisSharingError: The settings, the folder, the original, the text or the output cannot be used.

    Example:
        >>> import basis_sharing
        >>> result = basis_sharing.recover("./llama-20", "./llama-20-recovered", windows=16, length=256, epochs=1)
        >>> result.recovery.loss_after <= result.recovery.loss_before
        True
    """
    recovery = recovery or RecoverySettings.create(**settings)
    texts = [text.path for text in parse_texts(recovery.calibration, evaluate) if text.path is not None]
    chosen, output = choose(device or "auto"), Path(output)
    source, path = compressed_source(folder, "compress the model first")
    result = CompressionResult.read(path / RESULT_FILE)
    teacher = _teacher(recovery, original, result)
    inputs = [path, *texts, *([teacher.path] if teacher is not None and teacher.path is not None else [])]
    with ExitStack() as stack:
        staging = stack.enter_context(reserve(output, overwrite=overwrite, inputs=inputs))
        training = _opened(recovery, source, teacher, chosen, progress)
        check_space(staging, memory_bytes(training.run.model))
        evaluation = Evaluation(evaluate=evaluate, evaluation_windows=evaluation_windows)
        training.prepare(evaluation, result.recipe.length)
        stack.enter_context(same_run(work_beside(output), training.identity(source, teacher)))
        result = training.carried_out(work_beside(output), staging, result)
        write_result(staging, teacher, result)
        publish(staging, output)
    return result


def _teacher(settings: RecoverySettings, original: str | Path | None, result: CompressionResult) -> ModelSource | None:
    """Return the source of the original; None if the recovery does not need it.

    Raises:
        ModelError: The original is missing, or is another model.
    """
    if settings.loss != "distillation":
        return None
    try:
        source = resolve(original if original is not None else result.model)
        digest = fingerprint(source)
    except ModelError as error:
        if original is not None:
            raise
        raise ModelError(
            f"the original {result.model} is not where it was ({error}): name it with --original, or train without it "
            "(--preset next-token)."
        ) from None
    if result.model_fingerprint not in (None, digest):
        raise ModelError(
            f"{source.given} is not the model that {result.model} was when it was compressed: give that one with "
            "--original."
        )
    return source


def _opened(
    settings: RecoverySettings,
    source: ModelSource,
    teacher_source: ModelSource | None,
    device: torch.device,
    progress: ProgressCallback,
) -> "_Training":
    """Load the compressed model in fp32, and the original.

    Raises:
        ModelError: The original has another vocabulary.
    """
    progress(Progress("loading", 0, 1, "model"))
    tokenizer, stored = load_tokenizer(source), load_model(source).dtype
    model = load_model(source, torch.float32).to(device)
    teacher = None if teacher_source is None else load_model(teacher_source).to(device)
    progress(Progress("loading", 1, 1, "model"))
    vocabularies = {m.config.get_text_config().vocab_size for m in (model, teacher) if m is not None}
    if len(vocabularies) > 1 and teacher_source is not None:
        raise ModelError(f"{teacher_source.given} has another vocabulary than {source.given}: give its own original.")
    decoder = describe(load_skeleton(source))
    run = Run(
        model, tokenizer, decoder, decoder, source, fingerprint(source), machine=Machine(device), progress=progress
    )
    return _Training(settings, run, teacher, stored)


class _Training:
    """One recovery of an opened model."""

    text: TokenWindows

    def __init__(self, settings: RecoverySettings, run: Run, teacher: Any, stored: torch.dtype) -> None:
        self.settings, self.run, self.teacher, self.stored = settings, run, teacher, stored

    def prepare(self, evaluation: Evaluation, length: int | None) -> None:
        """Prepare the training text, and the texts to evaluate on."""
        self.text = _text(self.settings, self.run)
        self.before = Evaluate(evaluation, length, "evaluating before")
        self.after = Evaluate(evaluation, length, "evaluating after")
        self.before.texts = self.after.texts = prepared_texts(evaluation, length, self.run)

    def identity(self, source: ModelSource, teacher: ModelSource | None) -> dict[str, dict[str, object]]:
        """Return the names and values that identify a recovery when it is resumed, by subject."""
        return {
            "the compressed model": {"weights": fingerprint(source)},
            "the original": {"weights": None if teacher is None else fingerprint(teacher)},
            "the text": {"tokens": self.text.fingerprint},
            "setting": self.settings.model_dump(mode="json"),
            "software": dict(software_versions()),
        }

    def carried_out(self, work: Path, staging: Path, result: CompressionResult) -> CompressionResult:
        """Run the stages, and return the result of the compression with a report of the recovery."""
        train = _Train(self.settings, self.text, self.teacher, work, self.stored)
        untrained, trained = (RunWindow(self.text, name) for name in ("running the model", "checking the result"))
        check = CheckResult(untrained, trained)
        self.run.carry_out([self.before, untrained, train, trained, check, self.after, Write(staging)])
        measured = {
            "perplexity_before": self.before.perplexities,
            "perplexity_after": self.after.perplexities,
        }
        return _recovered(result, train.report.model_copy(update=measured), self.text.notes)


def _text(settings: RecoverySettings, run: Run) -> TokenWindows:
    """Return the training and held-out windows.

    Raises:
        RecipeError: There is only one window.
    """
    text = windows_of(settings, run)
    if len(text.input_ids) < 2:
        raise RecipeError(
            f"{settings.calibration} has one window of {settings.length} tokens, two are needed: use shorter ones."
        )
    return text


class _Train:
    """The stage that trains the model in place and converts it back to its stored dtype.

    Attributes:
        report: What was trained, and the losses before and after.
    """

    report: RecoveryReport

    def __init__(
        self, settings: RecoverySettings, text: TokenWindows, teacher: Any, work: Path, stored: torch.dtype
    ) -> None:
        self._settings, self._text, self._teacher, self._work, self._stored = settings, text, teacher, work, stored

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of training: fp32 weights, their gradients and two optimizer states for the whole model."""
        everything = sum(shapes.block_parameters) + shapes.outside
        yield Needs("recovery", 60 * (self._settings.minutes or 0.0), 16 * everything + shapes.twin)

    def run(self, run: Run) -> None:
        """Train the model, and report it."""
        settings, model, ids = self._settings, run.model, self._text.input_ids
        every = min(_HELD_OUT, len(ids))
        held_out = ids[every - 1 :: every][:_MOST_HELD_OUT]
        chosen = torch.ones(len(ids), dtype=torch.bool)
        chosen[every - 1 :: every] = False
        trained, parameters = (
            (model, _own_parameters(model)) if settings.train == "factors" else _with_lora(model, settings)
        )
        recovery = Recovery(
            trained, self._teacher, parameters, ids[chosen], held_out, default_dtype(model.device), run.progress
        )
        with output_errors(self._work):
            schedule = load_or_create(
                self._work / "schedule.json", TrainingSchedule, lambda: settled(settings, recovery)
            )
        relative = settings.train == "factors"
        outcome = recovery.run(
            schedule, settings.learning_rate, relative=relative, seed=settings.seed, folder=self._work
        )
        if settings.train == "lora":
            trained.merge_and_unload()
        self.report = self._reported(recovery, schedule, outcome)
        self._teacher = None
        model.to(self._stored)

    def _reported(self, recovery: Recovery, schedule: TrainingSchedule, outcome: TrainingOutcome) -> RecoveryReport:
        return RecoveryReport(
            settings=self._settings,
            fingerprint=self._text.fingerprint,
            windows=len(recovery.training),
            held_out=len(recovery.held_out),
            steps=schedule.steps,
            tokens=schedule.steps * self._text.input_ids.shape[1],
            trained_parameters=sum(p.numel() for p in recovery.parameters.values()),
            loss_before=schedule.loss_before,
            loss_after=outcome.loss,
            slowed=outcome.slowed,
            diverged=outcome.diverged,
            perplexity_before=(),
            perplexity_after=(),
        )


def _own_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return all parameters of the language model that can be trained, without embeddings and output head, by name.

    Of matrices in few bits these are the scales.
    """
    outside = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings(), *towers(model).values())
        if module is not None
        for parameter in module.parameters()
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in outside and parameter.is_floating_point()
    }


def _with_lora(model: Any, settings: RecoverySettings) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return the model with LoRA adapters on coefficients and bases of experts, and the adapters' parameters by name.

    Raises:
        RecipeError: The package peft is not installed, or all coefficients are in few bits.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError("LoRA needs the package peft: pip install 'basis-sharing[recover]'.") from None
    names = [
        f"{name}.coeff"
        for name, module in model.named_modules()
        if isinstance(module, FactorizedLinear) and isinstance(module.coeff, nn.Linear)
    ]
    names += [
        f"{name}.{basis}"
        for name, module in model.named_modules()
        if isinstance(module, NarrowExperts)
        for basis in ("input_basis", "output_basis")
    ]
    if not names:
        raise RecipeError(
            "LoRA is for coefficients, and this model has none but those in few bits: use --preset distill or "
            "next-token, which train the scales."
        )
    setting = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=names, task_type="CAUSAL_LM"
    )
    torch.manual_seed(settings.seed)
    adapted = get_peft_model(model, setting)
    return adapted, {name: p for name, p in adapted.named_parameters() if p.requires_grad}


def settled(
    settings: RecoverySettings, recovery: Recovery, clock: Callable[[], float] = time.monotonic
) -> TrainingSchedule:
    """Return the schedule for the epochs or minutes of the settings; for minutes, a few steps are timed.

    Evaluations take at most a quarter of the minutes, unless the two necessary ones, before and after, take more.

    Raises:
        RecipeError: The minutes are too few for one step.
    """
    start = clock()
    loss_before = recovery.held_out_loss()
    evaluation = clock() - start
    if settings.epochs is not None:
        return TrainingSchedule(max(1, round(settings.epochs * len(recovery.training))), _EVALUATIONS, loss_before)
    assert settings.minutes is not None
    for parameter in recovery.parameters.values():
        parameter.requires_grad_(True)
    times: list[float] = []
    for _ in range(3):  # the first one warms up
        start = clock()
        recovery.loss(recovery.training[:1]).backward()
        times.append(clock() - start)
    for parameter in recovery.parameters.values():
        parameter.grad = None
    seconds, step = 60 * settings.minutes, min(times[1:])
    evaluations = min(_EVALUATIONS, max(1, int(_EVALUATING * seconds / evaluation) - 1))
    steps = int((seconds - (evaluations + 1) * evaluation) / step)
    if steps < 1:
        needed = (2 * evaluation + step) / 60
        raise RecipeError(
            f"--minutes {settings.minutes:g} are too few for one step here: at least {needed:.1f}, or less with a "
            "shorter --length."
        )
    return TrainingSchedule(steps, evaluations, loss_before)


def _recovered(result: CompressionResult, report: RecoveryReport, about: tuple[str, ...]) -> CompressionResult:
    """Return the result of a compression after a recovery, without perplexities that were not measured again."""
    measured = {perplexity.fingerprint: perplexity for perplexity in report.perplexity_after}
    pairs = [
        (dense, measured[dense.fingerprint]) for dense in result.perplexity_before if dense.fingerprint in measured
    ]
    notes = [*result.notes, *(note for note in about if note not in result.notes)]
    if report.diverged:
        notes.append("the recovery diverged and was stopped: the best state before is kept.")
    elif report.loss_after >= report.loss_before:
        notes.append("the recovery did not improve on the held-out windows: the factors are as they were.")
    return result.model_copy(
        update={
            "recovery": report,
            "perplexity_before": tuple(dense for dense, _ in pairs),
            "perplexity_after": tuple(ours for _, ours in pairs),
            "notes": tuple(notes),
            "versions": software_versions(),
        }
    )
