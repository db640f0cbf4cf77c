"""The story of one recovery: a compressed folder is trained for a while and becomes a better one of the same size."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basis_sharing.calibration.windows import TokenWindows, calibration_windows
from basis_sharing.checkpoint.folder import check_folder
from basis_sharing.checkpoint.writer import check_space, publish, reserve, write_model
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.evaluation.perplexity import measure, prepare_text, window_length
from basis_sharing.models.families import needs_bos
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import (
    ModelSource,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
)
from basis_sharing.repair.whole_training import Recovery, Schedule
from basis_sharing.reports.card import CARD_FILE, model_card
from basis_sharing.results.base import software_versions
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.recovery import RecoveryReport, RecoverySettings
from basis_sharing.run.durable import settled_once
from basis_sharing.run.files import output_errors
from basis_sharing.run.machine import choose, default_dtype
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.work import same_run, work_beside
from basis_sharing.runtime.modeling_basis_sharing import FactorizedLinear

_HELD_OUT, _MOST_HELD_OUT = 16, 8
_LOOKS = 4  # at the held-out windows while training, at most; the first steps do harm that later ones undo
_LOOKING = 0.25  # of the minutes, at most


def recover(
    folder: str | Path,
    output: str | Path,
    *,
    original: str | Path | None = None,
    preset: str = "distill",
    evaluate: tuple[str, ...] = (),
    evaluation_windows: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> CompressionResult:
    """Train a compressed model on a text, and write it as a folder of the same structure and size.

    After an interruption the same call goes on from where it was; what is kept for that lies beside ``output`` and goes
    at the end.

    Args:
        folder: A compressed folder; it is not changed.
        output: Folder for the recovered model.
        original: The model it was made from, the teacher of a distillation; None: the one its result names.
        preset: Name of a preset, see :class:`~basis_sharing.results.recovery.RecoverySettings`.
        evaluate: Texts on which perplexity is measured before and after.
        evaluation_windows: Number of windows per text; None: all.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives progress events.
        **settings: The other fields of :class:`~basis_sharing.results.recovery.RecoverySettings`.

    Returns:
        The result of the compression, with a report of the recovery.

    Raises:
        BasisSharingError: Something is wrong with the settings, the folder, the original, the text or the output.
    """
    asked = RecoverySettings.create(preset, **settings)
    chosen, output = choose(device or "auto"), Path(output)
    source = resolve(folder)
    if source.kind != "folder" or source.path is None or not is_compressed(load_config(source).to_dict()):
        raise ModelError(f"{folder} is no folder of a model compressed by basis-sharing: compress the model first.")
    check_folder(source.path)
    result = CompressionResult.read(source.path / RESULT_FILE)
    teacher_source = _teacher(asked, original, result)
    work = work_beside(output)
    with ExitStack() as stack:
        inputs = [source.path, *([teacher_source.path] if teacher_source and teacher_source.path else [])]
        staging = stack.enter_context(reserve(output, overwrite=overwrite, inputs=inputs))
        progress(Progress("loading", 0, 1, "model"))
        tokenizer, stored = load_tokenizer(source), load_model(source).dtype
        model = load_model(source, torch.float32).to(chosen)
        teacher = None if teacher_source is None else load_model(teacher_source).to(chosen)
        progress(Progress("loading", 1, 1, "model"))
        if (
            teacher is not None
            and teacher.config.get_text_config().vocab_size != model.config.get_text_config().vocab_size
        ):
            raise ModelError(f"{original or result.model} has another vocabulary than {folder}: give its own original.")
        check_space(staging, memory_bytes(model))
        text = _text(asked, model, tokenizer, progress)
        texts = [
            prepare_text(model, tokenizer, name, windows=evaluation_windows, length=result.recipe.length)
            for name in evaluate
        ]
        identity: dict[str, dict[str, object]] = {
            "the compressed model": {"weights": fingerprint(source)},
            "the original": {"weights": None if teacher_source is None else fingerprint(teacher_source)},
            "the text": {"tokens": text.fingerprint},
            "setting": asked.model_dump(mode="json"),
            "software": dict(software_versions()),
        }
        stack.enter_context(same_run(work, identity))
        before = tuple(measure(model, t, stage="evaluating before", progress=progress) for t in texts)
        report = _train(asked, model, teacher, text, work, progress)
        del teacher
        model.to(stored)
        after = tuple(measure(model, t, stage="evaluating after", progress=progress) for t in texts)
        report = report.model_copy(update={"perplexity_before": before, "perplexity_after": after})
        write_model(staging, model, tokenizer)
        hub_id = teacher_source.given if teacher_source is not None and teacher_source.kind == "hub" else None
        result = _recovered(result, report)
        with output_errors(staging):
            result.write(staging / RESULT_FILE)
            (staging / CARD_FILE).write_text(model_card(result, hub_id=hub_id), encoding="utf-8")
        publish(staging, output)
    return result


def _teacher(asked: RecoverySettings, original: str | Path | None, result: CompressionResult) -> ModelSource | None:
    """Return where the original is, if the recovery needs it."""
    if asked.loss != "distillation":
        return None
    try:
        source = resolve(original if original is not None else result.model)
        known = fingerprint(source)
    except ModelError as error:
        if original is not None:
            raise
        raise ModelError(
            f"the original {result.model} is not where it was ({error}): name it with --original, or train without it "
            "(--preset next-token)."
        ) from None
    if result.model_fingerprint not in (None, known):
        raise ModelError(
            f"{source.given} is not the model that {result.model} was when it was compressed: give that one with "
            "--original."
        )
    return source


def _text(asked: RecoverySettings, model: Any, tokenizer: Any, progress: ProgressCallback) -> TokenWindows:
    text = calibration_windows(
        asked.calibration,
        tokenizer=tokenizer,
        model=model,
        windows=asked.windows,
        length=window_length(model.config, asked.length),
        seed=asked.seed,
        vocab_size=model.config.get_text_config().vocab_size,
        bos=needs_bos(model.config.model_type),
        progress=progress,
    )
    if len(text.input_ids) < 2:
        raise RecipeError(
            f"{asked.calibration} has one window of {asked.length} tokens, two are needed: use shorter ones."
        )
    return text


def _train(
    asked: RecoverySettings, model: Any, teacher: Any, text: TokenWindows, work: Path, progress: ProgressCallback
) -> RecoveryReport:
    """Train the model in place."""
    ids = text.input_ids
    every = min(_HELD_OUT, len(ids))
    held_out = ids[every - 1 :: every][:_MOST_HELD_OUT]
    chosen = torch.ones(len(ids), dtype=torch.bool)
    chosen[every - 1 :: every] = False
    training = ids[chosen]
    trained, parameters = (model, _own_parameters(model)) if asked.train == "factors" else _with_lora(model, asked)
    recovery = Recovery(trained, teacher, parameters, training, held_out, default_dtype(model.device), progress)
    with output_errors(work):
        schedule = settled_once(work / "schedule.json", Schedule, lambda: settled(asked, recovery))
    outcome = recovery.run(
        schedule, asked.learning_rate, relative=asked.train == "factors", seed=asked.seed, folder=work
    )
    if asked.train == "lora":
        trained.merge_and_unload()
    return RecoveryReport(
        settings=asked,
        fingerprint=text.fingerprint,
        windows=len(training),
        held_out=len(held_out),
        steps=schedule.steps,
        tokens=schedule.steps * ids.shape[1],
        trained_parameters=sum(p.numel() for p in parameters.values()),
        loss_before=schedule.loss_before,
        loss_after=outcome.loss,
        slowed=outcome.slowed,
        diverged=outcome.diverged,
        perplexity_before=(),
        perplexity_after=(),
    )


def _own_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return all parameters but those of embeddings and head."""
    outside = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for parameter in module.parameters()
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in outside}


def _with_lora(model: Any, asked: RecoverySettings) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return the model with adapters on its coefficients, and the parameters of these."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError("LoRA needs the package peft: pip install 'basis-sharing[recover]'.") from None
    names = [f"{name}.coeff" for name, module in model.named_modules() if isinstance(module, FactorizedLinear)]
    setting = LoraConfig(r=asked.lora_rank, lora_alpha=asked.lora_alpha, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(asked.seed)
    adapted = get_peft_model(model, setting)
    return adapted, {name: p for name, p in adapted.named_parameters() if p.requires_grad}


def settled(asked: RecoverySettings, recovery: Recovery, clock: Callable[[], float] = time.monotonic) -> Schedule:
    """Return how many steps and looks fit into the epochs or minutes; for the latter a few steps and a look are timed.

    Of the minutes, looks take a quarter at most, unless the two that there have to be, before and after, take more.

    Raises:
        RecipeError: Not one step fits.
    """
    start = clock()
    loss_before = recovery.held_out_loss()
    look = clock() - start
    if asked.epochs is not None:
        return Schedule(max(1, round(asked.epochs * len(recovery.training))), _LOOKS, loss_before)
    assert asked.minutes is not None
    for parameter in recovery.parameters.values():
        parameter.requires_grad_(True)
    times: list[float] = []
    for _ in range(3):  # the first one warms up
        start = clock()
        recovery.loss(recovery.training[:1]).backward()
        times.append(clock() - start)
    for parameter in recovery.parameters.values():
        parameter.grad = None
    seconds, step = 60 * asked.minutes, min(times[1:])
    looks = min(_LOOKS, max(1, int(_LOOKING * seconds / look) - 1))
    steps = int((seconds - (looks + 1) * look) / step)
    if steps < 1:
        needed = (2 * look + step) / 60
        raise RecipeError(
            f"--minutes {asked.minutes:g} are too few for one step here: at least {needed:.1f}, or less with a shorter "
            "--length."
        )
    return Schedule(steps, looks, loss_before)


def _recovered(result: CompressionResult, report: RecoveryReport) -> CompressionResult:
    """Return the result of a compression after a recovery: the perplexities that were not measured again go."""
    measured = {found.fingerprint: found for found in report.perplexity_after}
    pairs = [
        (dense, measured[dense.fingerprint]) for dense in result.perplexity_before if dense.fingerprint in measured
    ]
    notes = list(result.notes)
    if report.diverged:
        notes.append("the recovery diverged and was stopped: the best state before is kept.")
    elif report.loss_after >= report.loss_before:
        notes.append("the recovery did not improve on the windows it is judged by: the factors are as they were.")
    return result.model_copy(
        update={
            "recovery": report,
            "perplexity_before": tuple(dense for dense, _ in pairs),
            "perplexity_after": tuple(ours for _, ours in pairs),
            "notes": tuple(notes),
            "versions": software_versions(),
        }
    )
